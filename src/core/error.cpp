#include "core/error.h"

#include <cerrno>
#include <cstring>

namespace spb {

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < text.size() && out.size() < max_bytes; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool plain = byte >= 0x20 && byte < 0x7f;
    out += plain ? std::string(1, text[i]) : fmt::format("\\x{:02x}", byte);
  }
  if (out.size() >= max_bytes) out += "...";
  return out;
}

void throw_system_error(const std::string& operation) {
  const int code = errno;
  throw Error(ErrorKind::kSystem, fmt::format("{}: {}", operation, std::strerror(code)));
}

}  // namespace spb
