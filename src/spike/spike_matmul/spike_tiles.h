// Kernels for tile units (AMX): exact int8 products of 16 x 16 results by 128 columns at a time.
//
// A strip is 16 rows of counts as tiles [K / 64][16 rows][64 columns] of 1 KiB; a group of 128
// columns is two of them. Weights are cells as they are (spike_cells.h): the codes of a cell are
// two tiles.
//
// Counts beyond int8 are split as count = low + 128 * high with -64 <= low <= 63, which covers
// 16319 in magnitude; codes as core + excess with an int8 excess. Only groups that hold such a
// count or code pay for the second product. Sums stay below 128 * 255 * 16384 < 2^31.
#pragma once

#include <cstddef>
#include <cstdint>

#include "spike/spike_matmul/spike_cells.h"

namespace spb::spike {

inline constexpr int64_t kStripRows = 16;
inline constexpr int64_t kTileBytes = 1024;
inline constexpr int64_t kGroupTileBytes = 2 * kTileBytes;
inline constexpr int64_t kSumTile = kStripRows * kBlockRows;
inline constexpr int32_t kTileExcess = 127;            // largest |excess| of a code
inline constexpr int32_t kTileCount = 128 * 127 + 63;  // largest |count|

// Strips times blocks over some groups of columns. Flags say per group whether the second plane of
// a strip or block holds anything; without flags nothing does.
struct SpikeTileArgs {
  int64_t strips;
  const int8_t* low;  // of the first strip and group
  const int8_t* high;
  const uint8_t* high_flags;
  int64_t strip_bytes;  // from one strip to the next, of both planes
  int64_t strip_flags;
  int64_t blocks;
  const std::byte* cells;
  int64_t block_bytes;
  const int8_t* excess;  // [blocks, groups, 2 tiles]
  const uint8_t* excess_flags;
  int64_t groups;
  float* sums;  // [strips, blocks, 16, 16], added to
};

// Results of one strip and some blocks.
struct SpikeTileResults {
  const float* sums;  // [blocks, 16, 16]
  int64_t rows;       // of weights
  const int32_t* tokens;
  int64_t token_count;
  const float* thresholds;  // of all tokens
  RowOutput out;            // of token 0
};

namespace isa_amx {
void multiply_spike_tiles(const SpikeTileArgs& args);
void put_spike_tiles(const SpikeTileResults& results);
}  // namespace isa_amx

}  // namespace spb::spike
