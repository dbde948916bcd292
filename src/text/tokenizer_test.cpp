#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "core/rng.h"
#include "io/json.h"
#include "text/parity_lines_test.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

using Ids = std::vector<int32_t>;

std::unique_ptr<Tokenizer> qwen2() { return load_tokenizer_folder(fixture_path("qwen2")); }
std::unique_ptr<Tokenizer> smollm2() { return load_tokenizer_folder(fixture_path("smollm2")); }

TEST(Tokenizer, KnowsItsSpecialTokens) {
  const auto tokenizer = qwen2();
  EXPECT_EQ(tokenizer->vocab_size(), 151665);
  EXPECT_EQ(tokenizer->find("<|im_start|>"), 151644);
  EXPECT_EQ(tokenizer->find("<tool_call>"), 151657);
  EXPECT_EQ(tokenizer->find(" the"), tokenizer->encode(" the").at(0));
  EXPECT_FALSE(tokenizer->find("<|nothing|>").has_value());
  EXPECT_EQ(tokenizer->bos(), 151644);
  EXPECT_EQ(tokenizer->eos(), 151643);
  EXPECT_EQ(tokenizer->end_tokens(), (Ids{151643, 151645}));
  EXPECT_FALSE(tokenizer->wants_bos());
  EXPECT_TRUE(tokenizer->is_special(151645));
  EXPECT_FALSE(tokenizer->is_special(151657));  // <tool_call> is added, but not special
  EXPECT_FALSE(tokenizer->is_special(0));
}

TEST(Tokenizer, OptionsOfEncoding) {
  const auto tokenizer = qwen2();
  const std::string text = "<|im_end|>";
  EXPECT_EQ(tokenizer->encode(text), (Ids{151645}));
  const Ids plain = tokenizer->encode(text, {.parse_special = false});
  EXPECT_GT(plain.size(), 1u);
  EXPECT_EQ(tokenizer->decode(plain), text);
  EXPECT_EQ(tokenizer->encode(text, {.add_bos = true}), (Ids{151644, 151645}));
  EXPECT_EQ(tokenizer->encode(""), Ids{});
  EXPECT_EQ(tokenizer->encode("", {.add_bos = true}), (Ids{151644}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a<|im_end|>b")), "ab");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a<|im_end|>b"), true), "a<|im_end|>b");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("<tool_call>")), "<tool_call>");
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreUsageErrors) {
  const auto tokenizer = smollm2();
  for (const int32_t id :
       {-1, INT32_MIN, static_cast<int32_t>(tokenizer->vocab_size()), INT32_MAX}) {
    EXPECT_THROW(tokenizer->decode(Ids{id}), Error);
    EXPECT_THROW(tokenizer->is_special(id), Error);
  }
  // The trimmed vocabulary has holes: no text, no error.
  EXPECT_EQ(qwen2()->decode(Ids{151000}, true), "");
}

// A text beyond 4 KiB is encoded with a cache of pieces. Added tokens separate, so the tokens of a
// long text are those of its lines.
TEST(Tokenizer, ALongTextIsItsParts) {
  for (const auto& tokenizer : {qwen2(), smollm2()}) {
    const LineSource source;
    const std::string separator = "<|endoftext|>";
    std::string text;
    Ids expected;
    for (uint64_t i = 0; i < 2000; ++i) {
      const std::string line = source.line(i % 1500) + ".";
      const Ids ids = tokenizer->encode(line);
      text += line + separator;
      expected.insert(expected.end(), ids.begin(), ids.end());
      expected.push_back(tokenizer->find(separator).value());
    }
    EXPECT_EQ(tokenizer->encode(text), expected);
  }
}

TEST(Tokenizer, ALongWordTakesLittleTime) {
  const auto tokenizer = qwen2();
  const std::string word(1 << 18, 'a');
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(word)), word);
  std::string brackets;
  for (int i = 0; i < 30000; ++i) brackets += "<|im_star";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(brackets)), brackets);
}

TEST(Tokenizer, BytesWithoutATokenAreLeftOut) {
  const auto tokenizer = smollm2();  // 0x04 has no token in SmolLM2
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\x04z")), "az");
}

// A tokenizer of bytes a to z and some added tokens.
std::string json_with(const std::string& added, const std::string& normalizer = "null") {
  io::Json vocabulary = io::Json::object();
  for (char c = 'a'; c <= 'z'; ++c) vocabulary[std::string(1, c)] = c - 'a';
  vocabulary["\u0120"] = 26;                                                 // a space
  for (const char* other : {".", "\u00cc", "\u0123", "\u00c3", "\u00a9"}) {  // bytes of accents
    vocabulary[other] = vocabulary.size();
  }
  return R"({"normalizer":)" + normalizer +
         R"(,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"added_tokens":[)" +
         added + R"(],"model":{"type":"BPE","merges":[],"vocab":)" + vocabulary.dump() + "}}";
}

std::string added(int id, const std::string& content, const std::string& flags) {
  return fmt::format(R"({{"id":{},"content":"{}","special":true,"normalized":false{}}})", id,
                     content, flags);
}

TEST(AddedTokens, TheLeftmostLongestWins) {
  const auto tokenizer = load_tokenizer_json(
      json_with(added(100, "ab", "") + "," + added(101, "abcd", "") + "," + added(102, "bcde", "")),
      "test");
  EXPECT_EQ(tokenizer->encode("abc"), (Ids{100, 2}));
  EXPECT_EQ(tokenizer->encode("abcde"), (Ids{101, 4}));
  EXPECT_EQ(tokenizer->encode("xbcdeab"), (Ids{23, 102, 100}));
  EXPECT_EQ(tokenizer->encode("abcd", {.parse_special = false}), (Ids{0, 1, 2, 3}));
}

// Expected ids are those of Hugging Face tokenizers for the same file.
TEST(AddedTokens, FlagsAreHonoured) {
  const auto left = load_tokenizer_json(json_with(added(100, "xx", R"(,"lstrip":true)")), "test");
  EXPECT_EQ(left->encode("a  xx b"), (Ids{0, 100, 26, 1}));
  EXPECT_EQ(left->encode("xx  xx"), (Ids{100, 100}));
  const auto right = load_tokenizer_json(json_with(added(100, "xx", R"(,"rstrip":true)")), "test");
  EXPECT_EQ(right->encode("a xx  b"), (Ids{0, 26, 100, 1}));
  const auto word =
      load_tokenizer_json(json_with(added(100, "xx", R"(,"single_word":true)")), "test");
  EXPECT_EQ(word->encode("xx axx xxa .xx."),
            (Ids{100, 26, 0, 23, 23, 26, 23, 23, 0, 26, 27, 100, 27}));
}

TEST(AddedTokens, NormalizedOnesAreFoundAfterNormalisation) {
  const std::string token = R"({"id":100,"content":"\u00e9","special":false,"normalized":true})";
  const auto normalizing = load_tokenizer_json(json_with(token, R"({"type":"NFC"})"), "test");
  EXPECT_EQ(normalizing->encode("ae\xcc\x81"), (Ids{0, 100}));
  EXPECT_EQ(normalizing->find("\xc3\xa9"), 100);
  const std::string raw = R"({"id":100,"content":"\u00e9","special":false,"normalized":false})";
  const auto before = load_tokenizer_json(json_with(raw, R"({"type":"NFC"})"), "test");
  EXPECT_EQ(before->encode("a\xc3\xa9"), (Ids{0, 100}));
  EXPECT_EQ(before->encode("ae\xcc\x81"), (Ids{0, 30, 31}));  // the bytes of the composed letter
}

// Flags survive a GGUF file.
TEST(AddedTokens, ComeBackFromMetadata) {
  const auto tokenizer =
      load_tokenizer_json(json_with(added(100, "xx", R"(,"lstrip":true,"rstrip":true)") + "," +
                                        added(102, "yy", R"(,"single_word":true)"),
                                    R"({"type":"NFC"})"),
                          "test");
  io::GgufMetadata metadata;
  tokenizer->write_metadata(metadata);
  const auto again = load_tokenizer_gguf(metadata);
  EXPECT_EQ(again->vocab_size(), tokenizer->vocab_size());
  for (const char* text : {"a xx yy zyy", "ae\xcc\x81", "yyyy yy"}) {
    EXPECT_EQ(again->encode(text), tokenizer->encode(text)) << text;
  }
  EXPECT_TRUE(again->is_special(102));
}

TEST(StreamDetokenizer, GivesWholeCharactersAndLosesNothing) {
  const auto tokenizer = qwen2();
  const LineSource source;
  for (uint64_t i = 0; i < 2000; ++i) {
    const Ids ids = tokenizer->encode(source.line(i));
    StreamDetokenizer stream(*tokenizer, true);
    std::string text;
    for (const int32_t id : ids) {
      const std::string more = stream.push(id);
      ASSERT_TRUE(is_utf8(more));
      text += more;
    }
    text += stream.flush();
    ASSERT_EQ(text, to_utf8(tokenizer->decode(ids, true)));
  }
}

TEST(StreamDetokenizer, RandomTokensAreRepaired) {
  const auto tokenizer = smollm2();
  Rng rng(2);
  for (int i = 0; i < 2000; ++i) {
    Ids ids(static_cast<size_t>(rng.below(30)));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(300));  // mostly single bytes
    StreamDetokenizer stream(*tokenizer);
    std::string text;
    for (const int32_t id : ids) {
      const std::string more = stream.push(id);
      ASSERT_TRUE(is_utf8(more));
      text += more;
    }
    const std::string rest = stream.flush();
    ASSERT_TRUE(is_utf8(rest));
    ASSERT_EQ(text + rest, to_utf8(tokenizer->decode(ids)));
    ASSERT_EQ(stream.flush(), "");
  }
}

}  // namespace
}  // namespace spb::text
