// int8 products on the tile unit: two strips by two blocks in four result tiles.
//
// While the unit multiplies one group, vectors rescale the sums of the group before: the two take
// about equally long.
#include <immintrin.h>

#include "core/simd/tile_config.h"
#include "spike/spike_matmul/spike_tiles.h"

namespace spb::spike::SPB_ISA {
namespace {

const TileConfig kConfig;

// Compilers do not know that tile instructions touch memory.
void memory_barrier() { __asm__ volatile("" ::: "memory"); }

// The operands of four (or fewer) result tiles of one group.
struct Operands {
  const int8_t* strips[2];
  const int8_t* blocks[2];
};

// Result tile 2 i + j += strip i times block j; tiles of counts are 4 and 5, of codes 6 and 7.
template <int kStrips, int kBlocks>
void multiply_group(const Operands& o) {
  for (int64_t k = 0; k < kGroupTileBytes; k += kTileBytes) {
    _tile_loadd(4, o.strips[0] + k, 64);
    _tile_loadd(6, o.blocks[0] + k, 64);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kBlocks > 1) {
      _tile_loadd(7, o.blocks[1] + k, 64);
      _tile_dpbssd(1, 4, 7);
    }
    if constexpr (kStrips > 1) {
      _tile_loadd(5, o.strips[1] + k, 64);
      _tile_dpbssd(2, 5, 6);
      if constexpr (kBlocks > 1) _tile_dpbssd(3, 5, 7);
    }
  }
}

// Result tile 2 i + j += strip i times the excess of block j, for one j.
template <int kStrips, int kBlock>
void multiply_excess(const Operands& o, const int8_t* excess) {
  for (int64_t k = 0; k < kGroupTileBytes; k += kTileBytes) {
    _tile_loadd(4, o.strips[0] + k, 64);
    _tile_loadd(6, excess + k, 64);
    if constexpr (kBlock == 0) _tile_dpbssd(0, 4, 6);
    if constexpr (kBlock == 1) _tile_dpbssd(1, 4, 6);
    if constexpr (kStrips > 1) {
      _tile_loadd(5, o.strips[1] + k, 64);
      if constexpr (kBlock == 0) _tile_dpbssd(2, 5, 6);
      if constexpr (kBlock == 1) _tile_dpbssd(3, 5, 6);
    }
  }
}

// sums += 128 * (high counts times codes, and times their excess if there is one).
void add_high(const int8_t* high, const int8_t* codes, const int8_t* excess, int32_t* sums) {
  alignas(64) int32_t part[kSumTile];
  _tile_zero(0);
  for (int64_t k = 0; k < kGroupTileBytes; k += kTileBytes) {
    _tile_loadd(4, high + k, 64);
    _tile_loadd(6, codes + k, 64);
    _tile_dpbssd(0, 4, 6);
    if (excess == nullptr) continue;
    _tile_loadd(6, excess + k, 64);
    _tile_dpbssd(0, 4, 6);
  }
  _tile_stored(0, part, 64);
  memory_barrier();
  for (int64_t i = 0; i < kSumTile; i += 16) {
    const __m512i more = _mm512_slli_epi32(_mm512_load_si512(part + i), 7);
    _mm512_store_si512(sums + i, _mm512_add_epi32(_mm512_load_si512(sums + i), more));
  }
}

// Adds exact sums times the scales of their 16 rows of weights.
void rescale(const int32_t* exact, const float* scales, float* sums) {
  const __m512 factor = _mm512_loadu_ps(scales);
  for (int64_t i = 0; i < kSumTile; i += 16) {
    const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(exact + i));
    _mm512_store_ps(sums + i, _mm512_fmadd_ps(value, factor, _mm512_load_ps(sums + i)));
  }
}

const float* scales_of(const SpikeTileArgs& a, int64_t block, int64_t group) {
  return reinterpret_cast<const float*>(a.cells + block * a.block_bytes + group * kCellBytes +
                                        kCellCodeBytes);
}

const int8_t* excess_of(const SpikeTileArgs& a, int64_t block, int64_t group) {
  const int64_t cell = block * a.groups + group;
  if (a.excess_flags == nullptr || a.excess_flags[cell] == 0) return nullptr;
  return a.excess + cell * kGroupTileBytes;
}

template <int kStrips, int kBlocks>
void sum_group(const SpikeTileArgs& a, int64_t strip, int64_t block, int64_t group,
               int32_t* exact) {
  Operands o{};
  for (int i = 0; i < kStrips; ++i) {
    o.strips[i] = a.low + (strip + i) * a.strip_bytes + group * kGroupTileBytes;
  }
  for (int j = 0; j < kBlocks; ++j) {
    o.blocks[j] =
        reinterpret_cast<const int8_t*>(a.cells + (block + j) * a.block_bytes + group * kCellBytes);
  }
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  multiply_group<kStrips, kBlocks>(o);
  const int8_t* excess[2] = {excess_of(a, block, group), nullptr};
  if (excess[0] != nullptr) multiply_excess<kStrips, 0>(o, excess[0]);
  if constexpr (kBlocks > 1) {
    excess[1] = excess_of(a, block + 1, group);
    if (excess[1] != nullptr) multiply_excess<kStrips, 1>(o, excess[1]);
  }
  _tile_stored(0, exact, 64);
  if constexpr (kBlocks > 1) _tile_stored(1, exact + kSumTile, 64);
  if constexpr (kStrips > 1) _tile_stored(2, exact + 2 * kSumTile, 64);
  if constexpr (kStrips > 1 && kBlocks > 1) _tile_stored(3, exact + 3 * kSumTile, 64);
  memory_barrier();
  if (a.high_flags == nullptr) return;
  for (int i = 0; i < kStrips; ++i) {
    if (a.high_flags[(strip + i) * a.strip_flags + group] == 0) continue;
    const int8_t* high = a.high + (strip + i) * a.strip_bytes + group * kGroupTileBytes;
    for (int j = 0; j < kBlocks; ++j) {
      add_high(high, o.blocks[j], excess[j], exact + (2 * i + j) * kSumTile);
    }
  }
}

template <int kStrips, int kBlocks>
void multiply_block(const SpikeTileArgs& a, int64_t strip, int64_t block) {
  alignas(64) int32_t exact[2][4 * kSumTile];
  float* sums = a.sums + (strip * a.blocks + block) * kSumTile;
  const auto rescale_group = [&](int64_t group) {
    for (int i = 0; i < kStrips; ++i) {
      for (int j = 0; j < kBlocks; ++j) {
        rescale(exact[group & 1] + (2 * i + j) * kSumTile, scales_of(a, block + j, group),
                sums + (i * a.blocks + j) * kSumTile);
      }
    }
  };
  for (int64_t g = 0; g < a.groups; ++g) {
    sum_group<kStrips, kBlocks>(a, strip, block, g, exact[g & 1]);
    if (g > 0) rescale_group(g - 1);
  }
  rescale_group(a.groups - 1);
}

template <int kStrips>
void multiply_strips(const SpikeTileArgs& a, int64_t strip) {
  int64_t block = 0;
  for (; block + 2 <= a.blocks; block += 2) multiply_block<kStrips, 2>(a, strip, block);
  if (block < a.blocks) multiply_block<kStrips, 1>(a, strip, block);
}

}  // namespace

void multiply_spike_tiles(const SpikeTileArgs& a) {
  _tile_loadconfig(&kConfig);
  memory_barrier();
  int64_t strip = 0;
  for (; strip + 2 <= a.strips; strip += 2) multiply_strips<2>(a, strip);
  if (strip < a.strips) multiply_strips<1>(a, strip);
  _tile_release();
}

void put_spike_tiles(const SpikeTileResults& r) {
  for (int64_t t = 0; t < r.token_count; ++t) {
    const int64_t token = r.tokens[t];
    const __m512 threshold = _mm512_set1_ps(r.thresholds[token]);
    for (int64_t row = 0; row < r.rows; row += 16) {
      const int64_t left = r.rows - row;
      const auto mask = static_cast<__mmask16>(left < 16 ? (1u << left) - 1u : 0xffffu);
      float* y = r.out.y + token * r.out.stride + row;
      const __m512 bias = r.out.bias != nullptr ? _mm512_maskz_loadu_ps(mask, r.out.bias + row)
                                                : _mm512_setzero_ps();
      const float* sums = r.sums + row / 16 * kSumTile + t * 16;
      __m512 value = _mm512_fmadd_ps(threshold, _mm512_load_ps(sums), bias);
      if (r.out.accumulate) value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), value);
      _mm512_mask_storeu_ps(y, mask, value);
    }
  }
}

}  // namespace spb::spike::SPB_ISA
