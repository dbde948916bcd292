// Equal tokens to Hugging Face tokenizers on 12,000 lines for each family; see
// tools/make_golden/tokenizer_fixtures.py for the origin of the expected hashes and of the trimmed
// vocabularies.
#include <gtest/gtest.h>

#include <cstring>

#include "io/gguf.h"
#include "text/parity_lines_test.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

std::vector<uint32_t> read_hashes(const std::string& name) {
  const std::string bytes = read_fixture(name);
  std::vector<uint32_t> hashes(bytes.size() / sizeof(uint32_t));
  std::memcpy(hashes.data(), bytes.data(), hashes.size() * sizeof(uint32_t));
  return hashes;
}

void expect_parity(const Tokenizer& tokenizer, const std::string& hash_file) {
  const std::vector<uint32_t> expected = read_hashes(hash_file);
  ASSERT_GE(expected.size(), 10000u);
  const LineSource source;
  int wrong = 0;
  for (size_t i = 0; i < expected.size() && wrong < 5; ++i) {
    const std::string line = source.line(i);
    const std::vector<int32_t> ids = tokenizer.encode(line);
    if (hash_ids(ids) == expected[i]) continue;
    ++wrong;
    ADD_FAILURE() << "line " << i << ": " << printable(line, 1000) << " -> "
                  << fmt::format("{}", fmt::join(ids, " "));
  }
}

// The same tokenizer after a trip through the metadata of a GGUF file.
std::unique_ptr<Tokenizer> through_gguf(const Tokenizer& tokenizer) {
  io::GgufMetadata metadata;
  tokenizer.write_metadata(metadata);
  return load_tokenizer_gguf(metadata);
}

TEST(TokenizerParity, Qwen2FromVocabularyAndMerges) {
  expect_parity(*load_tokenizer_folder(fixture_path("qwen2")), "qwen2/line_hashes.bin");
}

TEST(TokenizerParity, Qwen2FromGguf) {
  const auto tokenizer = load_tokenizer_folder(fixture_path("qwen2"));
  expect_parity(*through_gguf(*tokenizer), "qwen2/line_hashes.bin");
}

TEST(TokenizerParity, SmolLm2FromTokenizerJson) {
  const auto tokenizer =
      load_tokenizer_json(read_fixture("smollm2/tokenizer.json"), "smollm2/tokenizer.json");
  expect_parity(*tokenizer, "smollm2/line_hashes.bin");
}

TEST(TokenizerParity, SmolLm2FromGguf) {
  const auto tokenizer = load_tokenizer_folder(fixture_path("smollm2"));
  expect_parity(*through_gguf(*tokenizer), "smollm2/line_hashes.bin");
}

// The trimmed vocabulary of Qwen2 has every byte, so any text comes back, in normal form C. The
// lines hold some text that is not; what was decoded is, and comes back as it is.
TEST(TokenizerParity, DecodingGivesTheTextBack) {
  const auto tokenizer = load_tokenizer_folder(fixture_path("qwen2"));
  const LineSource source;
  int unchanged = 0;
  for (uint64_t i = 0; i < 3000; ++i) {
    const std::string line = to_utf8(source.line(i));
    const std::string once = tokenizer->decode(tokenizer->encode(line), true);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(once), true), once) << printable(line);
    unchanged += once == line;
  }
  EXPECT_GT(unchanged, 2000);
}

}  // namespace
}  // namespace spb::text
