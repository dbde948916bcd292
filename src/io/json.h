// JSON text with every failure turned into a data error that names the file.
//
// The text is bounded in size and depth before it is parsed. Not-finite and out-of-range numbers,
// malformed UTF-8 and text after the value are errors. Only this module calls the parser.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace spb::io {

using Json = nlohmann::json;

enum class DuplicateKeys {
  kKeepLast,  // what Python and most tools do
  kRefuse,
};

struct JsonLimits {
  size_t max_bytes = size_t{128} << 20;
  int max_depth = 64;
  DuplicateKeys duplicates = DuplicateKeys::kKeepLast;
};

// `file` is named in messages.
Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits = {});
Json read_json_file(const std::string& path, const JsonLimits& limits = {});

// Typed access. `where` begins the message: "config.json: num_layers".
const Json* find_member(const Json& object, const std::string& key);  // nullptr when absent
const Json& json_object(const Json& value, std::string_view where);
const Json& json_array(const Json& value, std::string_view where);
const std::string& json_string(const Json& value, std::string_view where);
int64_t json_integer(const Json& value, std::string_view where);
double json_number(const Json& value, std::string_view where);  // integers too
bool json_bool(const Json& value, std::string_view where);

}  // namespace spb::io
