#include "text/pretokenizer.h"

#include <gtest/gtest.h>

#include <thread>

#include "text/parity_lines_test.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

constexpr PreTokenizerKind kKinds[] = {PreTokenizerKind::kGpt2, PreTokenizerKind::kQwen2,
                                       PreTokenizerKind::kLlama3, PreTokenizerKind::kSmolLm};

std::vector<std::string> cut(const PreTokenizer& pretokenizer, std::string_view text) {
  PreTokenizer::Cursor cursor(pretokenizer);
  cursor.start(text);
  std::vector<std::string> pieces;
  for (auto piece = cursor.next(); !piece.empty(); piece = cursor.next())
    pieces.emplace_back(piece);
  return pieces;
}

using Pieces = std::vector<std::string>;

TEST(PreTokenizer, CutsAsEachFamilyDoes) {
  const PreTokenizer gpt2(PreTokenizerKind::kGpt2);
  const PreTokenizer qwen2(PreTokenizerKind::kQwen2);
  const PreTokenizer llama3(PreTokenizerKind::kLlama3);
  const PreTokenizer smollm(PreTokenizerKind::kSmolLm);
  const std::string text = "I'M we're  a1234 (x)\n\n y";
  EXPECT_EQ(cut(gpt2, text),
            (Pieces{"I", "'", "M", " we", "'re", " ", " a", "1234", " (", "x", ")", "\n\n", " y"}));
  EXPECT_EQ(cut(smollm, text), (Pieces{"I", "'", "M", " we", "'re", " ", " a", "1", "2", "3", "4",
                                       " (", "x", ")", "\n\n", " y"}));
  EXPECT_EQ(cut(qwen2, text), (Pieces{"I", "'M", " we", "'re", " ", " a", "1", "2", "3", "4", " (",
                                      "x", ")\n\n", " y"}));
  EXPECT_EQ(cut(llama3, text),
            (Pieces{"I", "'M", " we", "'re", " ", " a", "123", "4", " (", "x", ")\n\n", " y"}));
  // A digit ends a part of its own, so all white space before it stays together.
  EXPECT_EQ(cut(smollm, "a   7"), (Pieces{"a", "   ", "7"}));
  EXPECT_EQ(cut(gpt2, "a   7"), (Pieces{"a", "  ", " 7"}));
  // U+180E is no white space; U+017F is a small s.
  EXPECT_EQ(cut(gpt2, " \xe1\xa0\x8e"), (Pieces{" \xe1\xa0\x8e"}));
  EXPECT_EQ(cut(qwen2, "x'\xc5\xbf"), (Pieces{"x", "'\xc5\xbf"}));
}

TEST(PreTokenizer, ThePiecesAreTheText) {
  const LineSource source;
  for (const PreTokenizerKind kind : kKinds) {
    const PreTokenizer pretokenizer(kind);
    for (uint64_t i = 0; i < 2000; ++i) {
      const std::string text = to_utf8(source.line(i));
      std::string joined;
      for (const std::string& piece : cut(pretokenizer, text)) joined += piece;
      ASSERT_EQ(joined, text);
    }
  }
}

// Runs that an expression could backtrack over.
TEST(PreTokenizer, LongRunsAreOnePiece) {
  for (const PreTokenizerKind kind : kKinds) {
    const PreTokenizer pretokenizer(kind);
    const size_t length = 1 << 18;
    EXPECT_EQ(cut(pretokenizer, std::string(length, ' ')).size(), 1u);
    EXPECT_EQ(cut(pretokenizer, std::string(length, 'a')).size(), 1u);
    EXPECT_EQ(cut(pretokenizer, std::string(length, '!')).size(), 1u);
    EXPECT_EQ(cut(pretokenizer, std::string(length, ' ') + "a").size(), 2u);
    EXPECT_EQ(cut(pretokenizer, std::string(length, '\n') + "a").size(),
              kind == PreTokenizerKind::kGpt2 || kind == PreTokenizerKind::kSmolLm ? 3u : 2u);
  }
}

TEST(PreTokenizer, NamesComeBack) {
  for (const PreTokenizerKind kind : kKinds) EXPECT_EQ(parse_ggml_name(ggml_name(kind)), kind);
  EXPECT_FALSE(parse_ggml_name("").has_value());
  EXPECT_FALSE(parse_ggml_name("default").has_value());
  EXPECT_FALSE(kind_of_split("").has_value());
}

TEST(PreTokenizer, CursorsOfSeveralThreadsShareOne) {
  const PreTokenizer pretokenizer(PreTokenizerKind::kQwen2);
  const LineSource source;
  std::string text;
  for (uint64_t i = 0; i < 300; ++i) text += to_utf8(source.line(i));
  const Pieces expected = cut(pretokenizer, text);
  std::vector<Pieces> found(4);
  std::vector<std::thread> threads;
  for (Pieces& pieces : found) threads.emplace_back([&] { pieces = cut(pretokenizer, text); });
  for (std::thread& thread : threads) thread.join();
  for (const Pieces& pieces : found) EXPECT_EQ(pieces, expected);
}

}  // namespace
}  // namespace spb::text
