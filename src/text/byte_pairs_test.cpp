#include "text/byte_pairs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/rng.h"

namespace spb::text {
namespace {

std::array<int32_t, 256> identity_bytes() {
  std::array<int32_t, 256> tokens;
  for (int32_t byte = 0; byte < 256; ++byte) tokens[static_cast<size_t>(byte)] = byte;
  return tokens;
}

// Random merges over the letters a, b and c, and what they lead to.
std::vector<Merge> random_merges(Rng& rng, int count) {
  std::vector<int32_t> tokens = {'a', 'b', 'c'};
  std::vector<Merge> merges;
  std::set<std::pair<int32_t, int32_t>> seen;
  while (static_cast<int>(merges.size()) < count) {
    const auto any = [&] { return tokens[static_cast<size_t>(rng.below(std::ssize(tokens)))]; };
    const Merge merge{any(), any(), 256 + static_cast<int32_t>(merges.size())};
    if (!seen.insert({merge.left, merge.right}).second) continue;
    merges.push_back(merge);
    tokens.push_back(merge.result);
  }
  return merges;
}

size_t rank_of(const std::vector<Merge>& merges, int32_t left, int32_t right) {
  const auto found = std::find_if(merges.begin(), merges.end(), [&](const Merge& merge) {
    return merge.left == left && merge.right == right;
  });
  return static_cast<size_t>(found - merges.begin());
}

// The definition, one merge at a time.
std::vector<int32_t> merge_plainly(const std::string& text, const std::vector<Merge>& merges) {
  std::vector<int32_t> ids;
  for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
  while (true) {
    size_t best_rank = merges.size();
    size_t best_at = 0;
    for (size_t at = 0; at + 1 < ids.size(); ++at) {
      const size_t rank = rank_of(merges, ids[at], ids[at + 1]);
      if (rank < best_rank) best_at = at;
      best_rank = std::min(best_rank, rank);
    }
    if (best_rank == merges.size()) return ids;
    ids[best_at] = merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
}

TEST(BytePairs, EqualsTheDefinition) {
  Rng rng(3);
  BytePairs::Workspace workspace;
  for (int round = 0; round < 60; ++round) {
    const std::vector<Merge> merges = random_merges(rng, 1 + static_cast<int>(rng.below(40)));
    const BytePairs pairs(merges, identity_bytes(), BytePairs::kNoToken);
    ASSERT_FALSE(pairs.repeated());
    for (int i = 0; i < 50; ++i) {
      std::string text(static_cast<size_t>(rng.below(40)), 'a');
      for (char& byte : text) byte = static_cast<char>('a' + rng.below(4));  // d has no merge
      std::vector<int32_t> ids;
      pairs.encode(text, workspace, ids);
      ASSERT_EQ(ids, merge_plainly(text, merges)) << text;
    }
  }
}

TEST(BytePairs, BytesWithoutATokenAreLeftOutOrUnknown) {
  std::array<int32_t, 256> bytes;
  bytes.fill(BytePairs::kNoToken);
  bytes['a'] = 1;
  bytes['b'] = 2;
  const std::vector<Merge> merges = {{1, 2, 3}};
  BytePairs::Workspace workspace;
  std::vector<int32_t> ids;
  BytePairs(merges, bytes, BytePairs::kNoToken).encode("xaxb", workspace, ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{3}));  // what is left becomes adjacent, as in the reference
  ids.clear();
  BytePairs(merges, bytes, 9).encode("xaxb", workspace, ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{9, 1, 9, 2}));
}

// Powers of two of one letter: a merge by scanning would take minutes.
TEST(BytePairs, ALongRunTakesLittleTime) {
  std::vector<Merge> merges;
  int32_t last = 'a';
  for (int32_t id = 256; id < 266; ++id) {
    merges.push_back({last, last, id});
    last = id;
  }
  BytePairs::Workspace workspace;
  std::vector<int32_t> ids;
  BytePairs(merges, identity_bytes(), BytePairs::kNoToken)
      .encode(std::string(1 << 18, 'a'), workspace, ids);
  EXPECT_EQ(ids, std::vector<int32_t>(1 << 8, 265));
}

TEST(BytePairs, ReportsARepeatedPair) {
  const BytePairs pairs({{'a', 'b', 256}, {'b', 'a', 257}, {'a', 'b', 258}}, identity_bytes(), -1);
  EXPECT_EQ(pairs.repeated(), 2u);
}

}  // namespace
}  // namespace spb::text
