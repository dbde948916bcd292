#include <immintrin.h>

#include "core/simd/tile_config.h"
#include "core/simd/transpose.h"
#include "core/simd/vec.h"
#include "ops/softmax_attention/softmax_attention_tiles.h"

namespace spb::SPB_ISA {
namespace {

using ops::kTileDims;
using ops::kTileKeys;
using ops::kTileQueries;
using ops::kTileRun;
using ops::TileKeys;
using ops::TileQueries;

constexpr int kTile = 16;             // rows of a tile register, and 32-bit columns
constexpr int64_t kRowBytes = 64;     // of a tile register
constexpr int64_t kPair = 2 * kTile;  // bf16 numbers in a row of a tile register

void configure() {
  static constexpr TileConfig kConfig;
  _tile_loadconfig(&kConfig);
}

// scores [kTileKeys, kTileQueries] of one group of keys.
void score(const TileQueries& queries, const uint16_t* high, const uint16_t* low, float* scores) {
  const int64_t row_bytes = queries.dims * 2;
  const int64_t second_keys = kTile * queries.dims;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t d = 0; d < queries.dims; d += kTileDims) {
    const uint16_t* query = queries.high + d * kTileQueries;
    const uint16_t* query_rest = queries.low + d * kTileQueries;
    _tile_loadd(4, high + d, row_bytes);
    _tile_loadd(5, high + second_keys + d, row_bytes);
    _tile_loadd(6, query_rest, kRowBytes);
    _tile_loadd(7, query_rest + kTile * kPair, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(6, query, kRowBytes);
    _tile_loadd(7, query + kTile * kPair, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (low == nullptr) continue;
    _tile_loadd(4, low + d, row_bytes);
    _tile_loadd(5, low + second_keys + d, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  constexpr int64_t kScoreBytes = kTileQueries * 4;
  _tile_stored(0, scores, kScoreBytes);
  _tile_stored(1, scores + kTile, kScoreBytes);
  _tile_stored(2, scores + kTile * kTileQueries, kScoreBytes);
  _tile_stored(3, scores + kTile * kTileQueries + kTile, kScoreBytes);
}

// acc[dims, queries] += values[dims, keys] x weights[keys, queries]
void weigh(const uint16_t* high, const uint16_t* low, const uint16_t* weights, int64_t keys,
           int64_t dims, float* acc) {
  constexpr int64_t kAccBytes = kTileQueries * 4;
  constexpr int64_t kWeightBytes = kTileQueries * 4;  // two keys of every query
  for (int64_t d = 0; d < dims; d += kTileDims) {
    float* out = acc + d * kTileQueries;
    _tile_loadd(0, out, kAccBytes);
    _tile_loadd(1, out + kTile, kAccBytes);
    _tile_loadd(2, out + kTile * kTileQueries, kAccBytes);
    _tile_loadd(3, out + kTile * kTileQueries + kTile, kAccBytes);
    for (int64_t key = 0; key < keys; key += kTileKeys) {
      const int64_t value = key * dims + d * kTileKeys;
      const uint16_t* weight = weights + key * kTileQueries;
      _tile_loadd(4, high + value, kRowBytes);
      _tile_loadd(5, high + value + kTile * kTileKeys, kRowBytes);
      _tile_loadd(6, weight, kWeightBytes);
      _tile_loadd(7, weight + kPair, kWeightBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      if (low == nullptr) continue;
      _tile_loadd(4, low + value, kRowBytes);
      _tile_loadd(5, low + value + kTile * kTileKeys, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, kAccBytes);
    _tile_stored(1, out + kTile, kAccBytes);
    _tile_stored(2, out + kTile * kTileQueries, kAccBytes);
    _tile_stored(3, out + kTile * kTileQueries + kTile, kAccBytes);
  }
}

// 2^x for x <= 0, to 1e-4: the weights are rounded to bf16 next.
Vec exp2_coarse(Vec x) {
  const auto fraction = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
  Vec p = fma(fraction, broadcast(0.07802451636f), broadcast(0.22606716437f));
  p = fma(p, fraction, broadcast(0.69583353742f));
  p = fma(p, fraction, broadcast(0.99992521871f));
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);
}

// Positions of the first and the last key that each query sees, relative to key 0 of the run.
struct Sight {
  VecI first[2];
  VecI last[2];
  int64_t all_from, all_to;    // keys [all_from, all_to) are seen by every query
  int64_t some_from, some_to;  // keys outside [some_from, some_to) are seen by none
};

int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

Sight sight_of(const TileQueries& queries, const TileKeys& keys) {
  Sight sight;
  int32_t first[kTileQueries];
  int32_t last[kTileQueries];
  for (int64_t i = 0; i < kTileQueries; ++i) {
    const int64_t row = queries.first_row + (i < queries.rows ? i : queries.rows - 1);
    const int64_t seen = queries.first_position + row / queries.group - keys.position;
    first[i] = static_cast<int32_t>(clamp(seen - queries.window_size + 1, -1, keys.count));
    last[i] = static_cast<int32_t>(clamp(seen, -1, keys.count - 1));
  }
  __builtin_memcpy(sight.first, first, sizeof first);
  __builtin_memcpy(sight.last, last, sizeof last);
  sight.some_from = first[0] < 0 ? 0 : first[0];
  sight.all_from = first[kTileQueries - 1] < 0 ? 0 : first[kTileQueries - 1];
  sight.all_to = last[0] + 1;
  sight.some_to = last[kTileQueries - 1] + 1;
  return sight;
}

void mask(const Sight& sight, int64_t key, float* scores) {
  const VecI at = VecI{} + static_cast<int32_t>(key);
  for (int half = 0; half < 2; ++half) {
    float* p = scores + half * kTile;
    const VecI seen = (at >= sight.first[half]) & (at <= sight.last[half]);
    store(p, seen ? load(p) : broadcast(-__builtin_inff()));
  }
}

// Scores of codes become those of their keys.
void apply_scales(const float* scales, float* scores) {
  for (int64_t key = 0; key < kTileKeys; ++key) {
    float* row = scores + key * kTileQueries;
    store(row, load(row) * scales[key]);
    store(row + kTile, load(row + kTile) * scales[key]);
  }
}

// The new maxima of one half of the queries; rescales what was summed under the old ones and
// returns what to subtract from scores.
Vec raise_maximum(const float* scores, int64_t keys, const TileQueries& queries, int half) {
  Vec largest[4];
  for (int i = 0; i < 4; ++i) largest[i] = load(scores + i * kTileQueries);
  for (int64_t key = 4; key < keys; key += 4) {
    for (int i = 0; i < 4; ++i) {
      largest[i] = max(largest[i], load(scores + (key + i) * kTileQueries));
    }
  }
  float* old_max = queries.max + half * kTile;
  float* sum = queries.sum + half * kTile;
  const Vec block_max = max(max(largest[0], largest[1]), max(largest[2], largest[3]));
  const Vec old = load(old_max);
  const Vec now = max(block_max, old);
  // No key seen yet: any finite base keeps exp2(-inf - base) = 0.
  const Vec base = now == broadcast(-__builtin_inff()) ? Vec{} : now;
  if (_mm512_cmp_ps_mask((__m512)now, (__m512)old, _CMP_NEQ_UQ) != 0) {
    const Vec factor = exp((old - base) * 0.69314718f);
    store(old_max, now);
    store(sum, load(sum) * factor);
    for (int64_t d = 0; d < queries.dims; ++d) {
      float* acc = queries.acc + d * kTileQueries + half * kTile;
      store(acc, load(acc) * factor);
    }
  }
  return base;
}

// weights of keys, two by two, rounded to bf16; the sums take the rounded ones, so that the
// weights of a query add up to one. Those of codes are multiplied by the scales of the values
// first, which the sums leave out.
template <bool kCodes>
void exponentiate(const float* scores, int64_t keys, const TileQueries& queries, int half, Vec base,
                  [[maybe_unused]] const float* scales, uint16_t* weights) {
  const __m512i half_unit = _mm512_set1_epi32(0x8000);
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  Vec even_sum = {};
  Vec odd_sum = {};
  for (int64_t key = 0; key < keys; key += 2) {
    const float* pair = scores + key * kTileQueries;
    Vec even = exp2_coarse(load(pair) - base);
    Vec odd = exp2_coarse(load(pair + kTileQueries) - base);
    if constexpr (kCodes) {
      even = even * scales[key];
      odd = odd * scales[key + 1];
    }
    const __m512i even_bits = _mm512_and_si512(_mm512_add_epi32((__m512i)even, half_unit), upper);
    const __m512i odd_bits = _mm512_and_si512(_mm512_add_epi32((__m512i)odd, half_unit), upper);
    if constexpr (kCodes) {
      even_sum = even_sum + (Vec)even_bits * (1.0f / scales[key]);
      odd_sum = odd_sum + (Vec)odd_bits * (1.0f / scales[key + 1]);
    } else {
      even_sum = even_sum + (Vec)even_bits;
      odd_sum = odd_sum + (Vec)odd_bits;
    }
    _mm512_storeu_si512(weights + key * kTileQueries,
                        _mm512_or_si512(_mm512_srli_epi32(even_bits, 16), odd_bits));
  }
  float* sum = queries.sum + half * kTile;
  store(sum, load(sum) + (even_sum + odd_sum));
}

void weigh_scores(const float* scores, int64_t count, const TileQueries& queries,
                  const float* value_scales, uint16_t* weights) {
  for (int half = 0; half < 2; ++half) {
    const float* columns = scores + half * kTile;
    const Vec base = raise_maximum(columns, count, queries, half);
    const auto pass = value_scales != nullptr ? exponentiate<true> : exponentiate<false>;
    pass(columns, count, queries, half, base, value_scales, weights + half * kPair);
  }
}

const uint16_t* offset(const uint16_t* p, int64_t by) { return p != nullptr ? p + by : nullptr; }

void attend(const TileQueries& queries, const TileKeys& keys, float* scratch) {
  configure();
  const Sight sight = sight_of(queries, keys);
  float* scores = scratch;
  auto* weights = reinterpret_cast<uint16_t*>(scratch + kTileRun * kTileQueries);
  const int64_t from = sight.some_from / kTileKeys * kTileKeys;
  for (int64_t run = from; run < sight.some_to; run += kTileRun) {
    const int64_t rest = (sight.some_to - run + kTileKeys - 1) / kTileKeys * kTileKeys;
    const int64_t count = rest < kTileRun ? rest : kTileRun;
    for (int64_t key = 0; key < count; key += kTileKeys) {
      const int64_t at = (run + key) * queries.dims;
      float* group = scores + key * kTileQueries;
      score(queries, keys.high_keys + at, offset(keys.low_keys, at), group);
      const int64_t first = run + key;
      if (keys.key_scales != nullptr) apply_scales(keys.key_scales + first, group);
      if (first >= sight.all_from && first + kTileKeys <= sight.all_to) continue;
      for (int64_t i = 0; i < kTileKeys; ++i) mask(sight, first + i, group + i * kTileQueries);
    }
    weigh_scores(scores, count, queries,
                 keys.value_scales != nullptr ? keys.value_scales + run : nullptr, weights);
    weigh(keys.high_values + run * queries.dims, offset(keys.low_values, run * queries.dims),
          weights, count, queries.dims, queries.acc);
  }
  _tile_release();
}

void finish(const TileQueries& queries, float* outputs) {
  for (int half = 0; half < 2; ++half) {
    const Vec factor = 1.0f / load(queries.sum + half * kTile);
    for (int64_t d = 0; d < queries.dims; d += kTile) {
      Vec square[kTile];
      for (int i = 0; i < kTile; ++i) {
        square[i] = load(queries.acc + (d + i) * kTileQueries + half * kTile) * factor;
      }
      transpose(square);
      for (int i = 0; i < kTile; ++i) {
        store(outputs + (half * kTile + i) * queries.dims + d, square[i]);
      }
    }
  }
}

const ops::SoftmaxAttentionTiles kTiles = {pack_tile_queries, kPackTileKeys, kPackTileValues,
                                           attend, finish};

}  // namespace
}  // namespace spb::SPB_ISA

namespace spb::ops {

const SoftmaxAttentionTiles* softmax_attention_tiles() { return &SPB_ISA::kTiles; }

}  // namespace spb::ops
