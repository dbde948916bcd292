// Tokenizer files of strangers: whatever they hold, loading ends in a tokenizer or in one line that
// says what is wrong.
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/rng.h"
#include "io/json.h"
#include "text/parity_lines_test.h"
#include "text/tokenizer.h"

namespace spb::text {
namespace {

// The message of the data error that `action` must throw.
template <typename Action>
std::string data_error(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return "no error";
}

io::Json good_json() {
  return io::Json::parse(R"({
    "added_tokens": [{"id": 5, "content": "<e>", "special": true}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Digits", "individual_digits": true},
      {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
}

using Pointer = io::Json::json_pointer;

std::string error_with(const char* pointer, const io::Json& value) {
  io::Json json = good_json();
  json[Pointer(pointer)] = value;
  return data_error([&] { load_tokenizer_json(json.dump(), "t.json"); });
}

void expect_mention(const std::string& message, const char* part) {
  EXPECT_TRUE(message.starts_with("t.json: ")) << message;
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(HostileJson, TheUnchangedFileLoads) {
  const auto tokenizer = load_tokenizer_json(good_json().dump(), "t.json");
  EXPECT_EQ(tokenizer->encode("ab<e>"), (std::vector<int32_t>{2, 5}));
}

TEST(HostileJson, WhatIsNotJson) {
  for (const char* text : {"", " ", "{", "[1,", "nul", "{\"a\":1}x", "{\"a\":\"\xff\"}", "1e999"}) {
    expect_mention(data_error([&] { load_tokenizer_json(text, "t.json"); }), "JSON");
  }
  for (const char* text : {"[]", "1", "\"x\"", "null", "{}"}) {
    expect_mention(data_error([&] { load_tokenizer_json(text, "t.json"); }), "expected");
  }
  const std::string deep(1000000, '[');
  expect_mention(data_error([&] { load_tokenizer_json(deep, "t.json"); }), "levels");
}

TEST(HostileJson, IdsOutOfRangeOrTwice) {
  expect_mention(error_with("/model/vocab/a", -1), "id");
  expect_mention(error_with("/model/vocab/a", 1 << 20), "id");
  expect_mention(error_with("/model/vocab/a", INT64_MIN), "id");
  expect_mention(error_with("/model/vocab/a", UINT64_MAX), "2^63");
  expect_mention(error_with("/model/vocab/a", 1), "id 1");
  expect_mention(error_with("/model/vocab/a", 5), "id 5");
  expect_mention(error_with("/model/vocab/a", 1.5), "integer");
  expect_mention(error_with("/model/vocab/a", "0"), "integer");
  expect_mention(error_with("/model/vocab/a", nullptr), "integer");
  expect_mention(error_with("/added_tokens/0/id", -7), "id");
  expect_mention(error_with("/added_tokens/0/id", INT32_MAX), "id");
  expect_mention(error_with("/added_tokens/0/id", nullptr), "id");
  expect_mention(error_with("/added_tokens/1", {{"id", 6}, {"content", "<e>"}}), "one id");
  expect_mention(error_with("/added_tokens/1", {{"id", 5}, {"content", "<f>"}}), "id 5");
}

TEST(HostileJson, TextsThatAreNoTokens) {
  expect_mention(error_with("/model/vocab/", 7), "alphabet");
  expect_mention(error_with("/model/vocab/a b", 7), "alphabet");
  expect_mention(error_with("/model/vocab/\u4e2d", 7), "alphabet");
  expect_mention(error_with("/added_tokens/0/content", ""), "bytes");
  expect_mention(error_with("/added_tokens/0/content", std::string(100000, 'x')), "bytes");
  expect_mention(error_with("/added_tokens/0/content", 3), "string");
  expect_mention(error_with("/added_tokens/0", io::Json::object()), "content");
  expect_mention(error_with("/added_tokens/0", 3), "object");
  expect_mention(error_with("/model/vocab", io::Json::array()), "object");
  expect_mention(error_with("/model/vocab", io::Json::object()), "expected");
}

TEST(HostileJson, MergesThatLeadNowhere) {
  expect_mention(error_with("/model/merges/0", "a z"), "'z'");
  expect_mention(error_with("/model/merges/0", "b a"), "'ba'");
  for (const char* merge : {"", " ", "ab", "a ", " b", "a  b", "a b c"}) {
    expect_mention(error_with("/model/merges/0", merge), "merge 0");
  }
  expect_mention(error_with("/model/merges/0", 3), "string");
  expect_mention(error_with("/model/merges/0", {"a"}), "two tokens");
  expect_mention(error_with("/model/merges/0", {"a", "b", "c"}), "two tokens");
  expect_mention(error_with("/model/merges/0", {"a", 1}), "string");
  expect_mention(error_with("/model/merges/1", "a b"), "merge 1");
  expect_mention(error_with("/model/merges", "a b"), "array");
}

TEST(HostileJson, WhatWouldChangeTheTokensIsRefused) {
  expect_mention(error_with("/normalizer/type", "NFKC"), "NFKC");
  expect_mention(error_with("/normalizer/type", "Lowercase"), "Lowercase");
  expect_mention(error_with("/normalizer", "NFC"), "object");
  expect_mention(error_with("/pre_tokenizer", nullptr), "pre_tokenizer");
  expect_mention(error_with("/pre_tokenizer/type", "Whitespace"), "Whitespace");
  expect_mention(error_with("/pre_tokenizer/pretokenizers", nullptr), "array");
  expect_mention(error_with("/pre_tokenizer/pretokenizers", io::Json::array()), "combination");
  const char* first = "/pre_tokenizer/pretokenizers/0";
  expect_mention(error_with(first, {{"type", "Metaspace"}}), "Metaspace");
  expect_mention(error_with(first, {{"type", "Digits"}, {"individual_digits", false}}), "Digits");
  expect_mention(error_with(first, {{"type", "Split"}}), "Regex");
  const io::Json odd = {
      {"type", "Split"}, {"pattern", {{"Regex", "(a+)+b"}}}, {"behavior", "Isolated"}};
  expect_mention(error_with(first, odd), "(a+)+b");
  const char* second = "/pre_tokenizer/pretokenizers/1";
  expect_mention(error_with((second + std::string("/use_regex")).c_str(), false), "combination");
  expect_mention(error_with((second + std::string("/add_prefix_space")).c_str(), true), "prefix");
  expect_mention(error_with((second + std::string("/use_regex")).c_str(), "yes"), "boolean");
  expect_mention(error_with("/model/type", "Unigram"), "Unigram");
  expect_mention(error_with("/model/byte_fallback", true), "byte_fallback");
  expect_mention(error_with("/model/dropout", 0.1), "dropout");
  expect_mention(error_with("/model/end_of_word_suffix", "</w>"), "</w>");
  expect_mention(error_with("/model/unk_token", "nothing"), "unk_token");
  expect_mention(error_with("/model", nullptr), "model");
}

// Every value of the file is replaced by odd ones, and every member is removed.
void expect_no_crash(const io::Json& json) {
  try {
    const auto tokenizer = load_tokenizer_json(json.dump(), "t.json");
    tokenizer->decode(tokenizer->encode("ab <e>12\xff"));
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
  }
}

TEST(HostileJson, AnyMemberMayBeAnything) {
  const io::Json odd[] = {
      nullptr,          true, -1, 1e300, "", "x", io::Json::array(), io::Json::object(), {1, "a"},
      {{"type", "NFC"}}};
  const io::Json flat = good_json().flatten();
  for (const auto& [path, unused] : flat.items()) {
    for (Pointer at(path); !at.empty(); at = at.parent_pointer()) {
      for (const io::Json& value : odd) {
        io::Json json = good_json();
        json[at] = value;
        expect_no_crash(json);
      }
      io::Json json = good_json();
      io::Json& parent = json[at.parent_pointer()];
      if (parent.is_object()) parent.erase(at.back());
      expect_no_crash(json);
    }
  }
}

io::GgufMetadata good_metadata() {
  io::GgufMetadata metadata;
  load_tokenizer_json(good_json().dump(), "t.json")->write_metadata(metadata);
  return metadata;
}

std::string gguf_error(const char* key, io::GgufValue value) {
  io::GgufMetadata metadata = good_metadata();
  metadata.set(std::string("tokenizer.ggml.") + key, std::move(value));
  return data_error([&] { load_tokenizer_gguf(metadata); });
}

using Integers = std::vector<int64_t>;
using Strings = std::vector<std::string>;

TEST(HostileGguf, MetadataThatContradictsItself) {
  EXPECT_EQ(load_tokenizer_gguf(good_metadata())->vocab_size(), 6);
  const auto expect_error = [](const char* key, io::GgufValue value, const char* part) {
    const std::string message = gguf_error(key, std::move(value));
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect_error("model", std::string("llama"), "gpt2");
  expect_error("model", int64_t{3}, "string");
  expect_error("pre", std::string("default\n"), "default");
  expect_error("tokens", io::GgufArray(Integers{1, 2}), "strings");
  expect_error("tokens", io::GgufArray(Strings{}), "token_type");
  expect_error("tokens", io::GgufArray(Strings(6)), "token");
  expect_error("token_type", io::GgufArray(Integers{1, 1, 1}), "6 values");
  expect_error("token_type", io::GgufArray(Integers{1, 1, 1, 5, 5, 7}), "got 7");
  expect_error("token_type", io::GgufArray(Integers{1, 1, 1, 5, 5, -1}), "got -1");
  expect_error("token_type", io::GgufArray(Integers{1, 1, 1, 1, 5, 3}), "");
  expect_error("token_type", io::GgufArray(Integers(6, 5)), "merge 0");
  expect_error("merges", io::GgufArray(Strings{"a q"}), "'q'");
  expect_error("merges", io::GgufArray(Strings{"a b", "a b"}), "merge 1");
  expect_error("merges", io::GgufArray(Integers{1}), "strings");
  expect_error("bos_token_id", int64_t{6}, "bos");
  expect_error("eos_token_id", int64_t{-1}, "eos");
  expect_error("eot_token_id", uint64_t{1} << 40, "eot");
  expect_error("add_bos_token", int64_t{1}, "boolean");
}

TEST(HostileGguf, NothingIsThere) {
  EXPECT_NE(data_error([] { load_tokenizer_gguf({}); }).find("tokenizer.ggml.model"),
            std::string::npos);
}

// A copy of the fixture folder with one file replaced.
class HostileFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(testing::TempDir()) /
        fmt::format("spb_tokenizer_{}", testing::UnitTest::GetInstance()->random_seed() + getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::copy(fixture_path("qwen2"), folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const char* name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  std::string error() {
    return data_error([&] { load_tokenizer_folder(folder_.string()); });
  }

  std::filesystem::path folder_;
};

TEST_F(HostileFolder, MessagesNameTheFile) {
  const auto mentions = [&](const char* name) {
    const std::string message = error();
    return message.find(name) != std::string::npos;
  };
  EXPECT_EQ(error(), "no error");
  write("generation_config.json", R"({"eos_token_id": [151643, 999999999]})");
  EXPECT_TRUE(mentions("eos_token_id"));
  write("generation_config.json", R"({"eos_token_id": [151643, 151645]})");
  write("added_tokens.json", R"({"<|other|>": 151643})");
  EXPECT_TRUE(mentions("id 151643"));
  write("added_tokens.json", "[1]");
  EXPECT_TRUE(mentions("added_tokens.json"));
  std::filesystem::remove(folder_ / "added_tokens.json");
  write("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizer"})");
  EXPECT_TRUE(mentions("LlamaTokenizer"));
  write("tokenizer_config.json",
        R"({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|absent|>"})");
  EXPECT_TRUE(mentions("<|absent|>"));
  write(
      "tokenizer_config.json",
      R"({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"1x": {"content": "c"}}})");
  EXPECT_TRUE(mentions("'1x'"));
  write("tokenizer_config.json", "");
  EXPECT_TRUE(mentions("tokenizer_config.json"));
}

TEST_F(HostileFolder, MergesAndVocabulary) {
  write("merges.txt", "#version: 0.2\r\n\r\nnot_there either\r\n");
  EXPECT_NE(error().find("not_there"), std::string::npos);
  write("merges.txt", "#version: 0.2\r\n");
  EXPECT_EQ(error(), "no error");
  write("vocab.json", "[]");
  EXPECT_NE(error().find("vocab.json"), std::string::npos);
  std::filesystem::remove(folder_ / "vocab.json");
  EXPECT_NE(error().find("tokenizer.json"), std::string::npos);
  write("tokenizer.json", "{}");
  EXPECT_NE(error().find("tokenizer.json"), std::string::npos);
}

TEST(HostileText, AnyBytesAreEncoded) {
  Rng rng(8);
  const auto tokenizer = load_tokenizer_folder(fixture_path("qwen2"));
  for (int i = 0; i < 3000; ++i) {
    std::string bytes(static_cast<size_t>(rng.below(60)), '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng.below(256));
    for (const int32_t id : tokenizer->encode(bytes)) {
      ASSERT_GE(id, 0);
      ASSERT_LT(id, tokenizer->vocab_size());
    }
  }
}

}  // namespace
}  // namespace spb::text
