#include "text/json_fields.h"

namespace spb::text {

JsonFields::JsonFields(const io::Json& value, const std::string& source)
    : value_(io::json_object(value, source)), source_(source) {}

const io::Json* JsonFields::find(const char* key) const {
  const io::Json* value = io::find_member(value_, key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

const io::Json* JsonFields::object(const char* key) const {
  const io::Json* value = find(key);
  return value == nullptr ? nullptr : &io::json_object(*value, where(key));
}

const io::Json* JsonFields::array(const char* key) const {
  const io::Json* value = find(key);
  return value == nullptr ? nullptr : &io::json_array(*value, where(key));
}

std::optional<std::string> JsonFields::text(const char* key) const {
  const io::Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return io::json_string(*value, where(key));
}

std::optional<int64_t> JsonFields::integer(const char* key) const {
  const io::Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return io::json_integer(*value, where(key));
}

bool JsonFields::flag(const char* key, bool fallback) const {
  const io::Json* value = find(key);
  return value == nullptr ? fallback : io::json_bool(*value, where(key));
}

}  // namespace spb::text
