#include "core/options.h"

#include <charconv>
#include <cstdlib>

#include "core/error.h"

namespace spb {

std::optional<std::string> option(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

std::optional<int> integer_option(const char* name, int minimum, int maximum) {
  const std::optional<std::string> text = option(name);
  if (!text) return std::nullopt;
  int value = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, value);
  check(error == std::errc{} && stop == end && value >= minimum && value <= maximum,
        "{}: expected an integer from {} to {}, got '{}'", name, minimum, maximum,
        printable(*text));
  return value;
}

}  // namespace spb
