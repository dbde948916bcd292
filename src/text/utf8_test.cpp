#include "text/utf8.h"

#include <gtest/gtest.h>

#include "core/rng.h"

namespace spb::text {
namespace {

std::string encoded(char32_t code_point) {
  std::string text;
  append_utf8(text, code_point);
  return text;
}

TEST(Utf8, EveryCodePointComesBack) {
  for (char32_t code_point = 0; code_point <= 0x10ffff; ++code_point) {
    if (code_point >= 0xd800 && code_point <= 0xdfff) continue;
    const std::string text = encoded(code_point);
    const Utf8Character character = decode_utf8(text);
    ASSERT_EQ(character.state, Utf8State::kValid);
    ASSERT_EQ(character.code_point, code_point);
    ASSERT_EQ(character.length, text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      ASSERT_EQ(decode_utf8(text.substr(0, cut)).state, Utf8State::kUnfinished);
    }
  }
}

// Expected strings are what Python's bytes.decode("utf-8", "replace") gives.
TEST(Utf8, MalformedPartsAreReplacedByMaximalSubparts) {
  const std::string r = "\xef\xbf\xbd";
  EXPECT_EQ(to_utf8("a\x80z"), "a" + r + "z");
  EXPECT_EQ(to_utf8("\xc0\xaf"), r + r);                  // overlong
  EXPECT_EQ(to_utf8("\xe0\x80\x80"), r + r + r);          // overlong
  EXPECT_EQ(to_utf8("\xed\xa0\x80"), r + r + r);          // a surrogate
  EXPECT_EQ(to_utf8("\xf4\x90\x80\x80"), r + r + r + r);  // past the last code point
  EXPECT_EQ(to_utf8("\xf5\xff"), r + r);                  // bytes never used
  EXPECT_EQ(to_utf8("\xe2\x82 x"), r + " x");             // cut: one part
  EXPECT_EQ(to_utf8("\xf0\x9f\x98"), r);                  // cut at the end
  EXPECT_EQ(to_utf8("\xf0\x9f\xe2\x82\xac"), r + "\xe2\x82\xac");
  EXPECT_EQ(to_utf8("\xe2\x82\xe2\x82"), r + r);
}

TEST(Utf8, RepairedBytesAreUtf8AndStayAsTheyAre) {
  Rng rng(5);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes(static_cast<size_t>(rng.below(24)), '\0');
    for (char& byte : bytes) {
      byte = static_cast<char>(rng.below(3) == 0 ? rng.below(128) : 128 + rng.below(128));
    }
    const std::string text = to_utf8(bytes);
    ASSERT_TRUE(is_utf8(text));
    ASSERT_EQ(to_utf8(text), text);
    ASSERT_EQ(is_utf8(bytes), text == bytes);
    // What waits at the end is one unfinished character: repaired apart, nothing changes.
    const size_t waiting = unfinished_suffix(bytes);
    ASSERT_LE(waiting, 3u);
    const size_t ready = bytes.size() - waiting;
    ASSERT_EQ(to_utf8(bytes.substr(0, ready)) + to_utf8(bytes.substr(ready)), text);
  }
}

}  // namespace
}  // namespace spb::text
