// Kernels of softmax_attention for processors that multiply tiles of bf16 (AMX).
//
// Everything is transposed: scores and outputs have one column per query, so that the softmax runs
// down the columns of registers without any exchange between lanes.
//   scores [keys, queries]   = keys [keys, dims] x queries [dims, queries]
//   outputs [dims, queries] += values [dims, keys] x weights [keys, queries]
// Queries are split into two bf16 numbers, and so are keys and values that come from an f16 cache:
// high + low is exact to 16 bits. Codes of 8 bits are bf16 numbers: scores are multiplied by the
// scales of keys, weights by those of values. Only the weights are rounded to bf16. Sums are f32.
#pragma once

#include <cstdint>

#include "ops/softmax_attention/softmax_attention_kernels.h"

namespace spb::ops {

inline constexpr int64_t kTileQueries = 32;  // rows handled together
inline constexpr int64_t kTileKeys = 32;     // keys packed together
inline constexpr int64_t kTileRun = 256;     // keys whose scores are held at once
inline constexpr int64_t kTileDims = 32;     // head_dim is padded to a multiple of this

// Up to kTileQueries rows of a matrix of queries: row t * group + g is head g at token t.
struct TileQueries {
  const uint16_t* high;    // kTileQueries * dims, in the order of the products
  const uint16_t* low;     // what high leaves
  int64_t first_row;       // row 0 of the tile in the matrix
  int64_t rows;            // of the tile
  int64_t group;           // rows per token
  int64_t first_position;  // of the token of row 0 of the matrix
  int64_t window_size;     // never 0
  int64_t dims;            // head_dim, padded
  float* max;              // [kTileQueries], in units of log2
  float* sum;              // [kTileQueries]
  float* acc;              // [dims, kTileQueries]
};

// A run of positions: key 0 stands at `position`. Whole multiples of kTileKeys, padded with zeros.
struct TileKeys {
  const uint16_t* high_keys;    // [keys, dims]
  const uint16_t* low_keys;     // the same, or null where high is exact
  const uint16_t* high_values;  // [keys / kTileKeys, dims, kTileKeys]
  const uint16_t* low_values;   // the same, or null where high is exact
  const float* key_scales;      // [keys], none 0; null unless i8
  const float* value_scales;    // the same
  int64_t position;
  int64_t count;
};

// Packs up to kTileKeys positions; false if one is not finite. low may be null for bf16 and i8.
using PackTile = bool (*)(const RingRows& rows, int64_t position, int64_t count, int64_t dims,
                          uint16_t* high, uint16_t* low);

struct SoftmaxAttentionTiles {
  // Splits rows [rows, head_dim] into high and low; false if one is not finite.
  bool (*pack_queries)(const float* q, int64_t rows, int64_t head_dim, int64_t dims, uint16_t* high,
                       uint16_t* low);
  const PackTile* pack_keys;  // indexed by DType; null for f32
  const PackTile* pack_values;
  // `scratch` holds kTileScratchFloats.
  void (*attend)(const TileQueries& queries, const TileKeys& keys, float* scratch);
  // outputs [kTileQueries, dims] = acc / sum
  void (*finish)(const TileQueries& queries, float* outputs);
};

inline constexpr int64_t kTileScratchFloats = kTileRun * kTileQueries * 3 / 2;

// Null where the program was built without them. May be used where isa() is kAmx.
const SoftmaxAttentionTiles* softmax_attention_tiles();

}  // namespace spb::ops

namespace spb::isa_amx {
bool pack_tile_queries(const float* q, int64_t rows, int64_t head_dim, int64_t dims, uint16_t* high,
                       uint16_t* low);
extern const ops::PackTile kPackTileKeys[4];
extern const ops::PackTile kPackTileValues[4];
}  // namespace spb::isa_amx
