// bf16 products on the tile unit: 32 rows of x by 32 rows of weights in four result tiles. The
// first operand of the unit are strips of x, or rows of weights, whose results are transposed
// afterwards.
#include <immintrin.h>

#include "core/simd/tile_config.h"
#include "core/simd/transpose.h"
#include "ops/matmul/matmul_tiles.h"

namespace spb::ops::SPB_ISA {
using namespace spb::SPB_ISA;
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

// Of `tokens` rows of x by `rows` of weights, tile [strip, panel].
ResultTile result_tile(const RowOutput& out, int64_t tokens, int64_t rows, int64_t strip,
                       int64_t panel) {
  const int64_t tokens_left = tokens - 16 * strip;
  const int64_t rows_left = rows - 16 * panel;
  return {out.y + 16 * strip * out.stride + 16 * panel,
          out.bias == nullptr ? nullptr : out.bias + 16 * panel,
          out.stride,
          static_cast<int>(tokens_left < 16 ? tokens_left : 16),
          static_cast<int>(rows_left < 16 ? rows_left : 16),
          out.accumulate};
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

Fetch fetch_during(const NextBytes& n, int64_t steps) {
  if (n.stretches <= 0 || steps == 0) return {};
  const int64_t lines = (n.bytes + kLineBytes - 1) / kLineBytes * n.stretches;
  return {n.first, n.first + n.bytes, n.stride,
          n.bytes, n.stretches - 1,   (lines + steps - 1) / steps};
}

// Where a block of tiles that begins with `first` will put its results: stores that miss the caches
// on as many pages as there are tokens would stop the next products.
Fetch fetch_results(const ResultTile& first, int64_t tokens, int64_t rows, int64_t steps) {
  constexpr int64_t kFloatBytes = sizeof(float);
  return fetch_during({reinterpret_cast<const std::byte*>(first.y), first.stride * kFloatBytes,
                       rows * kFloatBytes, tokens},
                      steps);
}

// Result tiles 0..3, tiles of x 4 and 5, tiles of weights 6 and 7.
template <int kStrips, int kPanels>
void multiply_block(const TileProduct& p, int64_t strip, int64_t panel, Fetch& fetch) {
  alignas(64) float scratch[256];
  const auto result = [&](int64_t i, int64_t j) {
    return result_tile(p.out, p.tokens, p.rows, strip + i, panel + j);
  };
  begin_tile<0>(result(0, 0), scratch);
  if constexpr (kPanels > 1) begin_tile<1>(result(0, 1), scratch);
  if constexpr (kStrips > 1) begin_tile<2>(result(1, 0), scratch);
  if constexpr (kStrips > 1 && kPanels > 1) {
    begin_tile<3>(result(1, 1), scratch);
  }
  Fetch results =
      p.out.accumulate
          ? Fetch{}
          : fetch_results(result(0, 0), 16 * (kStrips - 1) + result(kStrips - 1, 0).tokens,
                          16 * (kPanels - 1) + result(0, kPanels - 1).rows, p.k_tiles);
  const std::byte* x = p.strips + strip * p.strip_bytes;
  const std::byte* w = p.panels + panel * p.panel_bytes;
  for (int64_t k = 0; k < p.k_tiles; ++k, x += kTileBytes, w += kTileBytes) {
    fetch.step();
    results.step();
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
  end_tile<0>(result(0, 0), scratch);
  if constexpr (kPanels > 1) end_tile<1>(result(0, 1), scratch);
  if constexpr (kStrips > 1) end_tile<2>(result(1, 0), scratch);
  if constexpr (kStrips > 1 && kPanels > 1) {
    end_tile<3>(result(1, 1), scratch);
  }
}

template <int kStrips>
void multiply_strips(const TileProduct& p, int64_t strip, Fetch& fetch) {
  const int64_t panels = (p.rows + 15) / 16;
  int64_t panel = 0;
  for (; panel + 2 <= panels; panel += 2) multiply_block<kStrips, 2>(p, strip, panel, fetch);
  if (panel < panels) multiply_block<kStrips, 1>(p, strip, panel, fetch);
}

// Up to 31 columns that whole tiles leave over, of 16 rows of weights, filled up with zeros: what
// follows them in memory may be NaN, or not there.
void copy_tail(const std::byte* rows, int64_t row_stride, int64_t columns, std::byte* tile) {
  const __mmask32 mask = (__mmask32{1} << columns) - 1;
  for (int i = 0; i < 16; ++i) {
    _mm512_store_si512(tile + 64 * i, _mm512_maskz_loadu_epi16(mask, rows + i * row_stride));
  }
}

// Rows of weights, as a tile may begin with them.
struct TileRows {
  const std::byte* first;
  int64_t stride;
  int64_t k_tiles;
};

// Result tiles 0..3, tiles of weights 4 and 5, tiles of x 6 and 7.
template <int kRowTiles, int kPanels>
void add_products(const TileRows& w, const std::byte* x, int64_t panel_bytes, Fetch& fetch,
                  Fetch& results) {
  const std::byte* rows = w.first;
  for (int64_t k = 0; k < w.k_tiles; ++k, rows += 64, x += kTileBytes) {
    fetch.step();
    results.step();
    _tile_loadd(4, rows, w.stride);
    _tile_loadd(6, x, 64);
    if constexpr (kPanels > 1) _tile_loadd(7, x + panel_bytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kPanels > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRowTiles > 1) {
      _tile_loadd(5, rows + 16 * w.stride, w.stride);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kPanels > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

template <int kTile>
void begin_transposed(const ResultTile& t, float* scratch) {
  if (t.bias == nullptr) {
    zero_tile<kTile>();
    return;
  }
  for (int i = 0; i < 16; ++i) {
    _mm512_store_ps(scratch + 16 * i, _mm512_set1_ps(i < t.rows ? t.bias[i] : 0.0f));
  }
  load_tile<kTile>(scratch, 16);
}

template <int kTile>
void end_transposed(const ResultTile& t, float* scratch) {
  store_tile<kTile>(scratch, 16);
  Vec tokens[16];
  for (int i = 0; i < 16; ++i) tokens[i] = (Vec)_mm512_load_ps(scratch + 16 * i);
  transpose(tokens);
  for (int i = 0; i < 16; ++i) {
    if (i < t.tokens) _mm512_mask_storeu_ps(t.y + i * t.stride, t.mask(), (__m512)tokens[i]);
  }
}

// One or two row tiles times one or two panels; `tails` are the tiles after the last whole ones.
template <int kRowTiles, int kPanels>
void multiply_row_block(const RowProduct& p, int64_t row_tile, int64_t panel,
                        const std::byte* tails, Fetch& fetch) {
  alignas(64) float scratch[256];
  const auto result = [&](int64_t i, int64_t j) {
    return result_tile(p.out, p.tokens, p.row_count, panel + j, row_tile + i);
  };
  begin_transposed<0>(result(0, 0), scratch);
  if constexpr (kPanels > 1) begin_transposed<1>(result(0, 1), scratch);
  if constexpr (kRowTiles > 1) begin_transposed<2>(result(1, 0), scratch);
  if constexpr (kRowTiles > 1 && kPanels > 1) begin_transposed<3>(result(1, 1), scratch);
  const int64_t whole = p.columns / kTileColumns;
  Fetch results = fetch_results(result(0, 0), 16 * (kPanels - 1) + result(0, kPanels - 1).tokens,
                                16 * (kRowTiles - 1) + result(kRowTiles - 1, 0).rows, whole);
  const std::byte* x = p.panels + panel * p.panel_bytes;
  add_products<kRowTiles, kPanels>({p.rows + 16 * row_tile * p.row_stride, p.row_stride, whole}, x,
                                   p.panel_bytes, fetch, results);
  const int64_t left = p.columns % kTileColumns == 0 ? 0 : 1;
  add_products<kRowTiles, kPanels>({tails, 64, left}, x + whole * kTileBytes, p.panel_bytes, fetch,
                                   results);
  end_transposed<0>(result(0, 0), scratch);
  if constexpr (kPanels > 1) end_transposed<1>(result(0, 1), scratch);
  if constexpr (kRowTiles > 1) end_transposed<2>(result(1, 0), scratch);
  if constexpr (kRowTiles > 1 && kPanels > 1) end_transposed<3>(result(1, 1), scratch);
}

// One or two row tiles times all panels. Fetches the next two meanwhile.
template <int kRowTiles>
void multiply_row_tiles(const RowProduct& p, int64_t row_tile) {
  alignas(64) std::byte tails[2 * kTileBytes];
  const int64_t whole = p.columns / kTileColumns;
  for (int i = 0; i < kRowTiles; ++i) {
    copy_tail(p.rows + 16 * (row_tile + i) * p.row_stride + 64 * whole, p.row_stride,
              p.columns % kTileColumns, tails + i * kTileBytes);
  }
  finish_stores();
  const int64_t panels = (p.tokens + 15) / 16;
  const int64_t next = 16 * (row_tile + kRowTiles);
  const int64_t left = p.row_count - next;
  Fetch fetch = fetch_during(
      {p.rows + next * p.row_stride, p.row_stride, 2 * p.columns, left < 32 ? left : 32},
      (panels + 1) / 2 * whole);
  int64_t panel = 0;
  for (; panel + 2 <= panels; panel += 2) {
    multiply_row_block<kRowTiles, 2>(p, row_tile, panel, tails, fetch);
  }
  if (panel < panels) multiply_row_block<kRowTiles, 1>(p, row_tile, panel, tails, fetch);
}

}  // namespace

void multiply_rows(const RowProduct& p) {
  const int64_t row_tiles = (p.row_count + 15) / 16;
  _tile_loadconfig(&kConfig);
  finish_stores();
  int64_t row_tile = 0;
  for (; row_tile + 2 <= row_tiles; row_tile += 2) multiply_row_tiles<2>(p, row_tile);
  if (row_tile < row_tiles) multiply_row_tiles<1>(p, row_tile);
  _tile_release();
}

void multiply_tiles(const TileProduct& p) {
  const int64_t strips = (p.tokens + 15) / 16;
  _tile_loadconfig(&kConfig);
  finish_stores();
  Fetch fetch = fetch_during(p.next, (p.tokens + 31) / 32 * ((p.rows + 31) / 32) * p.k_tiles);
  int64_t strip = 0;
  for (; strip + 2 <= strips; strip += 2) multiply_strips<2>(p, strip, fetch);
  if (strip < strips) multiply_strips<1>(p, strip, fetch);
  _tile_release();
}

}  // namespace spb::ops::SPB_ISA
