// bf16 products on the tile unit: 32 rows of x by 32 rows of weights in four result tiles.
#include <immintrin.h>

#include "core/simd/tile_config.h"
#include "ops/matmul/matmul_tiles.h"

namespace spb::ops::SPB_ISA {
namespace {

const TileConfig kConfig;

// Compilers do not know that tile instructions read memory.
void finish_stores() { __asm__ volatile("" ::: "memory"); }

// Tile numbers are part of the instruction, and GCC wants them as literals.
template <int kTile>
void zero_tile() {
  if constexpr (kTile == 0) _tile_zero(0);
  if constexpr (kTile == 1) _tile_zero(1);
  if constexpr (kTile == 2) _tile_zero(2);
  if constexpr (kTile == 3) _tile_zero(3);
}

template <int kTile>
void load_tile(const float* p, int64_t stride) {
  finish_stores();
  if constexpr (kTile == 0) _tile_loadd(0, p, stride * 4);
  if constexpr (kTile == 1) _tile_loadd(1, p, stride * 4);
  if constexpr (kTile == 2) _tile_loadd(2, p, stride * 4);
  if constexpr (kTile == 3) _tile_loadd(3, p, stride * 4);
}

template <int kTile>
void store_tile(float* p, int64_t stride) {
  if constexpr (kTile == 0) _tile_stored(0, p, stride * 4);
  if constexpr (kTile == 1) _tile_stored(1, p, stride * 4);
  if constexpr (kTile == 2) _tile_stored(2, p, stride * 4);
  if constexpr (kTile == 3) _tile_stored(3, p, stride * 4);
  finish_stores();
}

// One 16 x 16 tile of y: where it starts, and how much of it exists.
struct ResultTile {
  float* y;
  const float* bias;
  int64_t stride;
  int tokens;
  int rows;
  bool accumulate;

  bool whole() const { return tokens == 16 && rows == 16; }
  __mmask16 mask() const { return static_cast<__mmask16>((1u << rows) - 1u); }
};

ResultTile result_tile(const TileProduct& p, int64_t strip, int64_t panel) {
  const int64_t tokens = p.tokens - 16 * strip;
  const int64_t rows = p.rows - 16 * panel;
  return {p.out.y + 16 * strip * p.out.stride + 16 * panel,
          p.out.bias == nullptr ? nullptr : p.out.bias + 16 * panel,
          p.out.stride,
          static_cast<int>(tokens < 16 ? tokens : 16),
          static_cast<int>(rows < 16 ? rows : 16),
          p.out.accumulate};
}

template <int kTile>
void begin_tile(const ResultTile& t, float* scratch) {
  if (t.bias == nullptr && !t.accumulate) {
    zero_tile<kTile>();
    return;
  }
  if (t.bias == nullptr && t.whole()) {
    load_tile<kTile>(t.y, t.stride);
    return;
  }
  const __m512 bias =
      t.bias != nullptr ? _mm512_maskz_loadu_ps(t.mask(), t.bias) : _mm512_setzero_ps();
  for (int i = 0; i < 16; ++i) {
    __m512 row = bias;
    if (t.accumulate && i < t.tokens) {
      row = _mm512_add_ps(row, _mm512_maskz_loadu_ps(t.mask(), t.y + i * t.stride));
    }
    _mm512_store_ps(scratch + 16 * i, row);
  }
  load_tile<kTile>(scratch, 16);
}

template <int kTile>
void end_tile(const ResultTile& t, float* scratch) {
  if (t.whole()) {
    store_tile<kTile>(t.y, t.stride);
    return;
  }
  store_tile<kTile>(scratch, 16);
  for (int i = 0; i < t.tokens; ++i) {
    _mm512_mask_storeu_ps(t.y + i * t.stride, t.mask(), _mm512_load_ps(scratch + 16 * i));
  }
}

constexpr int64_t kLineBytes = 64;

// Walks through the bytes needed next, some lines with every step along K: the product leaves the
// memory idle, and what follows it (expanding weights) would do nothing but wait for memory.
struct Fetch {
  const std::byte* line;
  const std::byte* end;  // of this stretch
  int64_t stride;
  int64_t bytes;
  int64_t left;  // stretches after this one
  int64_t lines_per_step;

  void step() {
    for (int64_t i = 0; i < lines_per_step; ++i) {
      _mm_prefetch(line, _MM_HINT_T1);
      line += kLineBytes;
      if (line >= end) next_stretch();
    }
  }
  void next_stretch() {
    if (left == 0) {
      lines_per_step = 0;
      return;
    }
    --left;
    line = end - bytes + stride;
    end += stride;
  }
};

Fetch fetch_of(const TileProduct& p) {
  const NextBytes& n = p.next;
  if (n.stretches == 0) return {};
  const int64_t lines = (n.bytes + kLineBytes - 1) / kLineBytes * n.stretches;
  const int64_t steps = (p.tokens + 31) / 32 * ((p.rows + 31) / 32) * p.k_tiles;
  return {n.first, n.first + n.bytes, n.stride,
          n.bytes, n.stretches - 1,   (lines + steps - 1) / steps};
}

// Result tiles 0..3, tiles of x 4 and 5, tiles of weights 6 and 7.
template <int kStrips, int kPanels>
void multiply_block(const TileProduct& p, int64_t strip, int64_t panel, Fetch& fetch) {
  alignas(64) float scratch[256];
  begin_tile<0>(result_tile(p, strip, panel), scratch);
  if constexpr (kPanels > 1) begin_tile<1>(result_tile(p, strip, panel + 1), scratch);
  if constexpr (kStrips > 1) begin_tile<2>(result_tile(p, strip + 1, panel), scratch);
  if constexpr (kStrips > 1 && kPanels > 1) {
    begin_tile<3>(result_tile(p, strip + 1, panel + 1), scratch);
  }
  const std::byte* x = p.strips + strip * p.strip_bytes;
  const std::byte* w = p.panels + panel * p.panel_bytes;
  for (int64_t k = 0; k < p.k_tiles; ++k, x += kTileBytes, w += kTileBytes) {
    fetch.step();
    _tile_loadd(4, x, 64);
    _tile_loadd(6, w, 64);
    if constexpr (kPanels > 1) _tile_loadd(7, w + p.panel_bytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kPanels > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kStrips > 1) {
      _tile_loadd(5, x + p.strip_bytes, 64);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kPanels > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  end_tile<0>(result_tile(p, strip, panel), scratch);
  if constexpr (kPanels > 1) end_tile<1>(result_tile(p, strip, panel + 1), scratch);
  if constexpr (kStrips > 1) end_tile<2>(result_tile(p, strip + 1, panel), scratch);
  if constexpr (kStrips > 1 && kPanels > 1) {
    end_tile<3>(result_tile(p, strip + 1, panel + 1), scratch);
  }
}

template <int kStrips>
void multiply_strips(const TileProduct& p, int64_t strip, Fetch& fetch) {
  const int64_t panels = (p.rows + 15) / 16;
  int64_t panel = 0;
  for (; panel + 2 <= panels; panel += 2) multiply_block<kStrips, 2>(p, strip, panel, fetch);
  if (panel < panels) multiply_block<kStrips, 1>(p, strip, panel, fetch);
}

}  // namespace

void multiply_tiles(const TileProduct& p) {
  const int64_t strips = (p.tokens + 15) / 16;
  _tile_loadconfig(&kConfig);
  finish_stores();
  Fetch fetch = fetch_of(p);
  int64_t strip = 0;
  for (; strip + 2 <= strips; strip += 2) multiply_strips<2>(p, strip, fetch);
  if (strip < strips) multiply_strips<1>(p, strip, fetch);
  _tile_release();
}

}  // namespace spb::ops::SPB_ISA
