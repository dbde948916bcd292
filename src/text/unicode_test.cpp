#include "text/unicode.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

std::string text_of(std::initializer_list<char32_t> code_points) {
  std::string text;
  for (const char32_t code_point : code_points) append_utf8(text, code_point);
  return text;
}

TEST(Nfc, ComposesOrdersAndDecomposes) {
  EXPECT_EQ(normalize_nfc(text_of({'e', 0x301})), text_of({0xe9}));
  EXPECT_EQ(normalize_nfc(text_of({0x212b})), text_of({0xc5}));  // Angstrom sign
  EXPECT_EQ(normalize_nfc(text_of({'q', 0x307, 0x323})), text_of({'q', 0x323, 0x307}));
  EXPECT_EQ(normalize_nfc(text_of({'d', 0x307, 0x323})), text_of({0x1e0d, 0x307}));
  EXPECT_EQ(normalize_nfc(text_of({0x1112, 0x1161, 0x11ab})), text_of({0xd55c}));  // Hangul
  EXPECT_EQ(normalize_nfc(text_of({0xac00, 0x11a8})), text_of({0xac01}));
  EXPECT_EQ(normalize_nfc(text_of({0x958})), text_of({0x915, 0x93c}));  // composition exclusion
  EXPECT_EQ(normalize_nfc(text_of({0x344})), text_of({0x308, 0x301}));
  EXPECT_EQ(normalize_nfc(text_of({0xf900})), text_of({0x8c48}));
  EXPECT_EQ(normalize_nfc(text_of({0xfb01})), text_of({0xfb01}));  // compatibility only
}

TEST(Nfc, NormalTextStaysAndShortcutIsSafe) {
  Rng rng(9);
  for (int i = 0; i < 5000; ++i) {
    std::string text;
    for (int64_t left = rng.below(12); left > 0; --left) {
      const bool mark = rng.below(2) == 1;
      append_utf8(text, static_cast<char32_t>(mark ? 0x300 + rng.below(0x70) : rng.below(0xd7ff)));
    }
    const std::string normal = normalize_nfc(text);
    ASSERT_TRUE(is_utf8(normal));
    ASSERT_EQ(normalize_nfc(normal), normal);
    ASSERT_TRUE(may_change_in_nfc(text) || normal == text);
  }
  for (char32_t code_point = 0; code_point < 0x300; ++code_point) {
    ASSERT_FALSE(may_change_in_nfc(text_of({code_point})));
    const std::string mixed = text_of({code_point, 0x4e00});
    ASSERT_EQ(normalize_nfc(mixed), mixed);
  }
}

// Marks of two classes in turn: an ordering by swaps would take minutes.
TEST(Nfc, LongRunsOfMarksTakeLittleTime) {
  const size_t pairs = 150000;
  std::string text = "a";
  for (size_t i = 0; i < pairs; ++i) text += text_of({0x316, 0x327});
  const std::string normal = normalize_nfc(text);
  EXPECT_EQ(normal.substr(0, 1 + 2 * pairs).find(text_of({0x316})), std::string::npos);
  EXPECT_EQ(normal.size(), text.size());
}

TEST(CharacterClasses, WhiteSpaceAndWords) {
  for (const char32_t space : {0x9u, 0xdu, 0x20u, 0x85u, 0xa0u, 0x2003u, 0x3000u}) {
    EXPECT_TRUE(is_white_space(space)) << static_cast<uint32_t>(space);
    EXPECT_FALSE(is_word_character(space)) << static_cast<uint32_t>(space);
  }
  EXPECT_FALSE(is_white_space(0x180e));
  EXPECT_FALSE(is_white_space(0x200b));
  for (const char32_t letter : {U'a', U'_', U'7', U'\u00e9', U'\u4e2d', U'\u0301', U'\u200d'}) {
    EXPECT_TRUE(is_word_character(letter)) << static_cast<uint32_t>(letter);
  }
  EXPECT_FALSE(is_word_character('-'));
  EXPECT_FALSE(is_word_character(0x1f600));
}

}  // namespace
}  // namespace spb::text
