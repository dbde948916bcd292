// Typed access to the members of a JSON object in which null means absent, as Hugging Face writes
// it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "io/json.h"

namespace spb::text {

// A member of another type than asked for is a data error of the form "source: key: expected a
// string, got a number".
class JsonFields {
 public:
  // Both must outlive this. Data error unless `value` is an object.
  JsonFields(const io::Json& value, const std::string& source);

  const io::Json* find(const char* key) const;
  const io::Json* object(const char* key) const;
  const io::Json* array(const char* key) const;
  std::optional<std::string> text(const char* key) const;
  std::optional<int64_t> integer(const char* key) const;
  bool flag(const char* key, bool fallback) const;

  const std::string& source() const { return source_; }
  std::string where(const char* key) const { return source_ + ": " + key; }

 private:
  const io::Json& value_;
  const std::string& source_;
};

}  // namespace spb::text
