#include "core/error.h"
#include "io/gguf.h"

namespace spb::io {
namespace {

std::string_view type_name(const GgufValue& value) {
  static constexpr std::string_view kScalars[] = {"an integer", "an integer above 2^63 - 1",
                                                  "a number", "a boolean", "a string"};
  static constexpr std::string_view kArrays[] = {"an array of integers", "an array of numbers",
                                                 "an array of booleans", "an array of strings"};
  const auto* array = std::get_if<GgufArray>(&value);
  return array == nullptr ? kScalars[value.index()] : kArrays[array->index()];
}

[[noreturn]] void wrong_type(const std::string& path, std::string_view key,
                             std::string_view expected, const GgufValue& value) {
  fail(ErrorKind::kData, "{}: key '{}': expected {}, got {}", path, printable(key), expected,
       type_name(value));
}

template <typename T>
const std::vector<T>* elements(const GgufMetadata& metadata, const std::string& path,
                               std::string_view key, std::string_view expected) {
  const GgufValue* value = metadata.find(key);
  if (value == nullptr) return nullptr;
  const auto* array = std::get_if<GgufArray>(value);
  const auto* vector = array == nullptr ? nullptr : std::get_if<std::vector<T>>(array);
  if (vector == nullptr) wrong_type(path, key, expected, *value);
  return vector;
}

}  // namespace

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &entries_[found->second].value;
}

std::optional<int64_t> GgufMetadata::get_integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* integer = std::get_if<int64_t>(value)) return *integer;
  if (const auto* integer = std::get_if<uint64_t>(value); integer && *integer <= INT64_MAX) {
    return static_cast<int64_t>(*integer);
  }
  wrong_type(path_, key, "an integer", *value);
}

std::optional<double> GgufMetadata::get_number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* number = std::get_if<double>(value)) return *number;
  if (const auto* integer = std::get_if<int64_t>(value)) return static_cast<double>(*integer);
  if (const auto* integer = std::get_if<uint64_t>(value)) return static_cast<double>(*integer);
  wrong_type(path_, key, "a number", *value);
}

std::optional<bool> GgufMetadata::get_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* boolean = std::get_if<bool>(value)) return *boolean;
  wrong_type(path_, key, "a boolean", *value);
}

std::optional<std::string> GgufMetadata::get_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* text = std::get_if<std::string>(value)) return *text;
  wrong_type(path_, key, "a string", *value);
}

const std::vector<std::string>* GgufMetadata::get_strings(std::string_view key) const {
  return elements<std::string>(*this, path_, key, "an array of strings");
}

const std::vector<int64_t>* GgufMetadata::get_integers(std::string_view key) const {
  return elements<int64_t>(*this, path_, key, "an array of integers");
}

const std::vector<double>* GgufMetadata::get_numbers(std::string_view key) const {
  return elements<double>(*this, path_, key, "an array of numbers");
}

void GgufMetadata::set(std::string key, GgufValue value) {
  const auto [place, added] = index_.emplace(key, entries_.size());
  if (added) {
    entries_.push_back({std::move(key), std::move(value)});
  } else {
    entries_[place->second].value = std::move(value);
  }
}

}  // namespace spb::io
