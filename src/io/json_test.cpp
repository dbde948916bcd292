#include "io/json.h"

#include <cmath>

#include "io/test_files.h"

namespace spb::io {
namespace {

void expect_refused(std::string_view text, std::initializer_list<std::string_view> parts,
                    const JsonLimits& limits = {}) {
  expect_error(ErrorKind::kData, parts, [&] { parse_json(text, "c.json", limits); });
}

TEST(Json, ParsesAndReadsByType) {
  const Json json = parse_json(R"({"i": -3, "f": 0.5, "b": true, "s": "é\u0041", "a": [1]})", "c");
  EXPECT_EQ(json_integer(json["i"], "i"), -3);
  EXPECT_EQ(json_number(json["i"], "i"), -3.0);
  EXPECT_EQ(json_number(json["f"], "f"), 0.5);
  EXPECT_EQ(json_bool(json["b"], "b"), true);
  EXPECT_EQ(json_string(json["s"], "s"), "éA");
  EXPECT_EQ(json_array(json["a"], "a").size(), 1u);
  EXPECT_EQ(find_member(json, "absent"), nullptr);
  EXPECT_EQ(find_member(json["a"], "i"), nullptr);
  EXPECT_EQ(json_object(*find_member(parse_json(R"({"o":{}})", "c"), "o"), "o").size(), 0u);
}

TEST(Json, WrongTypesNameWhere) {
  const Json json = parse_json(R"({"big": 18446744073709551615, "f": 1.5, "n": null})", "c");
  const auto refuse = [](std::initializer_list<std::string_view> parts, auto read) {
    expect_error(ErrorKind::kData, parts, read);
  };
  refuse({"c: big: expected an integer below 2^63"}, [&] { json_integer(json["big"], "c: big"); });
  refuse({"c: f: expected an integer, got a number"}, [&] { json_integer(json["f"], "c: f"); });
  refuse({"c: n: expected a number, got null"}, [&] { json_number(json["n"], "c: n"); });
  refuse({"c: f: expected a string, got a number"}, [&] { json_string(json["f"], "c: f"); });
  refuse({"c: f: expected a boolean"}, [&] { json_bool(json["f"], "c: f"); });
  refuse({"c: f: expected an array"}, [&] { json_array(json["f"], "c: f"); });
  refuse({"c: expected an array, got an object"}, [&] { json_array(json, "c"); });
  refuse({"c: n: expected an object, got null"}, [&] { json_object(json["n"], "c: n"); });
}

TEST(Json, MalformedTextIsADataErrorNamingTheFile) {
  for (const std::string_view text :
       {"", "{", "{\"a\":}", "[1,]", "[1] 2", "nan", "1e999", "\"\x80\"", "\"\n\"", "{\"a\" 1}",
        "\"\\ud800\"", "[\"unterminated]", "tru"}) {
    expect_refused(text, {"c.json: JSON: "});
  }
  const std::string nul("[1]\0[", 5);
  expect_refused(nul, {"c.json: byte 3: JSON: expected text, got a zero byte"});
}

TEST(Json, DepthAndSizeAreBounded) {
  const std::string deep(1'000'000, '[');
  expect_refused(deep, {"c.json: byte 64: JSON: expected at most 64 levels"});
  expect_refused(R"({"a":[{"b":1}]})", {"byte 6", "2 levels"}, {.max_depth = 2});
  EXPECT_EQ(parse_json(R"({"[[[\"[[{{": ["}]"]})", "c", {.max_depth = 2}).size(), 1u);
  expect_refused("[1, 2]", {"expected at most 5 bytes, got 6"}, {.max_bytes = 5});
}

TEST(Json, DuplicateKeysAreKeptOrRefused) {
  const std::string_view text = R"({"a": {"x": 1}, "b": {"x": 1}, "a": 2})";
  EXPECT_EQ(parse_json(text, "c")["a"], 2);
  const JsonLimits strict = {.duplicates = DuplicateKeys::kRefuse};
  expect_refused(text, {"c.json: JSON key 'a': expected once, got twice"}, strict);
  expect_refused(R"([{"k": [{"a": 1, "\u0061": 2}]}])", {"'a'"}, strict);
  EXPECT_EQ(parse_json(R"({"a": {"x": 1}, "b": {"x": 1}})", "c", strict).size(), 2u);
  expect_refused("{", {"c.json: JSON: "}, strict);
}

TEST(Json, ReadsFiles) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_json_file(folder.write("c.json", "[7]"))[0], 7);
  expect_error(ErrorKind::kData, {"d.json: JSON"},
               [&] { read_json_file(folder.write("d.json", "[7")); });
  expect_error(ErrorKind::kSystem, {"absent"}, [&] { read_json_file(folder.file("absent")); });
}

}  // namespace
}  // namespace spb::io
