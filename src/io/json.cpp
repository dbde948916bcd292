#include "io/json.h"

#include <unordered_set>
#include <vector>

#include "core/error.h"
#include "io/mapped_file.h"

namespace spb::io {
namespace {

// Checked on the text: the tree of a deep document must not be built at all, because code that
// walks it recursively would exhaust the stack; and the parser takes a zero byte for the end.
void check_text(std::string_view text, const std::string& file, int max_depth) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    check_data(c != '\0', "{}: byte {}: JSON: expected text, got a zero byte", file, i);
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == ']' || c == '}') --depth;
    if (c != '[' && c != '{') continue;
    check_data(++depth <= max_depth, "{}: byte {}: JSON: expected at most {} levels, got more",
               file, i, max_depth);
  }
}

// The parser's message without its "[json.exception...]" tag.
std::string reason(const Json::exception& error) {
  const std::string_view text = error.what();
  const size_t end = text.find("] ");
  return printable(end == std::string_view::npos ? text : text.substr(end + 2), 300);
}

Json parse_refusing_duplicates(std::string_view text, const std::string& file) {
  std::vector<std::unordered_set<std::string>> open_objects;
  const auto on_event = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      check_data(open_objects.back().insert(key).second,
                 "{}: JSON key '{}': expected once, got twice", file, printable(key));
    }
    return true;
  };
  return Json::parse(text.begin(), text.end(), on_event);
}

std::string_view kind(const Json& value) {
  if (value.is_number_integer()) return "an integer";
  if (value.is_number()) return "a number";
  if (value.is_string()) return "a string";
  if (value.is_boolean()) return "a boolean";
  if (value.is_array()) return "an array";
  if (value.is_object()) return "an object";
  return "null";
}

const Json& require(bool condition, const Json& value, std::string_view where,
                    std::string_view expected) {
  check_data(condition, "{}: expected {}, got {}", where, expected, kind(value));
  return value;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits) {
  check_data(text.size() <= limits.max_bytes, "{}: JSON: expected at most {} bytes, got {}", file,
             limits.max_bytes, text.size());
  check_text(text, file, limits.max_depth);
  try {
    if (limits.duplicates == DuplicateKeys::kRefuse) return parse_refusing_duplicates(text, file);
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& error) {
    fail(ErrorKind::kData, "{}: JSON: {}", file, reason(error));
  }
}

Json read_json_file(const std::string& path, const JsonLimits& limits) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path, limits);
}

const Json* find_member(const Json& object, const std::string& key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

const Json& json_object(const Json& value, std::string_view where) {
  return require(value.is_object(), value, where, "an object");
}

const Json& json_array(const Json& value, std::string_view where) {
  return require(value.is_array(), value, where, "an array");
}

const std::string& json_string(const Json& value, std::string_view where) {
  return require(value.is_string(), value, where, "a string").get_ref<const std::string&>();
}

int64_t json_integer(const Json& value, std::string_view where) {
  require(value.is_number_integer(), value, where, "an integer");
  check_data(!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX,
             "{}: expected an integer below 2^63, got {}", where, value.get<uint64_t>());
  return value.get<int64_t>();
}

double json_number(const Json& value, std::string_view where) {
  return require(value.is_number(), value, where, "a number").get<double>();
}

bool json_bool(const Json& value, std::string_view where) {
  return require(value.is_boolean(), value, where, "a boolean").get<bool>();
}

}  // namespace spb::io
