#include "text/piece_cache.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/rng.h"

namespace spb::text {
namespace {

// Pieces that differ in length, in the first or in the second eight bytes, many to a place. The
// stored tokens spell the piece.
TEST(PieceCache, GivesTheTokensOfThatPieceOrNone) {
  Rng rng(4);
  PieceCache cache;
  int hits = 0;
  for (int i = 0; i < 200000; ++i) {
    std::string piece(static_cast<size_t>(1 + rng.below(PieceCache::kLongestPiece)), 'a');
    for (size_t at = rng.below(2) == 0 ? 0 : 7; at < piece.size(); ++at)
      piece[at] = static_cast<char>(rng.below(3));
    const std::vector<int32_t> tokens(piece.begin(), piece.end());
    PieceCache::Entry& entry = cache.find(piece);
    if (entry.count > 0) {
      const std::vector<int32_t> known(entry.tokens().begin(), entry.tokens().end());
      ASSERT_EQ(known, tokens);
      ++hits;
    }
    PieceCache::store(entry, tokens);
    ASSERT_EQ(cache.find(piece).count,
              tokens.size() <= PieceCache::Entry::kMostIds ? tokens.size() : 0);
  }
  EXPECT_GT(hits, 1000);
}

}  // namespace
}  // namespace spb::text
