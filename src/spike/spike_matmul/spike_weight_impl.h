// The inside of a SpikeWeight: shared by the files of this folder only.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "spike/spike_matmul/spike_bands.h"
#include "spike/spike_matmul/spike_cells.h"
#include "spike/spike_matmul/spike_weight.h"

namespace spb::spike {

// Part of the residual within its cell. What 16 bits do not hold takes several entries, whose sum
// counts; there is nearly never such a code.
struct CellExcess {
  uint8_t row;     // below 16
  uint8_t column;  // below 128
  int16_t excess;
};

// A weight on a CUDA device. A tile is 192 rows times one group of 128 columns: 128 bytes a row,
// whose eight pieces of 16 are exchanged as cuda::swizzled says. Rows are padded to whole tiles.
struct DeviceTiles {
  Buffer codes;         // [tiles, groups] tiles of core codes
  Buffer scales;        // [tiles, groups, 192] f32, 0 for rows that do not exist
  Buffer channels;      // [columns, rows padded to 128] i8: core codes by channel; or empty
  Buffer excess;        // the lists of Impl; empty without excess
  Buffer excess_begin;  // [blocks * groups + 1] i64
  // What codes exceed the core by as digits of base 256, tiles like those of codes. Index [tiles,
  // groups] i32: -1 without excess, else twice the number of the tile of low digits, and 1 more
  // where a tile of high ones follows it.
  Buffer digits;
  Buffer digit_index;
  // Rows with codes of more than kDigitCode, whose excess the digits leave out.
  Buffer far_rows;  // i32
  int64_t far_row_count = 0;
  Buffer far_row_flags;  // [rows] i8: 1 for far rows; empty where there are none
};

inline constexpr int64_t kDeviceTileRows = 192;
inline constexpr int64_t kDeviceTileBytes = kDeviceTileRows * kScaleGroup;
inline constexpr int64_t kDeviceChannelRows = 128;
// Largest |code| in digits: with counts up to 2^14 + 127 the sum of a group keeps within 2^31.
inline constexpr int32_t kDigitCode = 512;

struct SpikeWeight::Impl {
  int64_t rows = 0;
  int64_t columns = 0;
  Buffer cells;  // spike_cells.h
  int64_t band_rows = kShortestBand;
  Buffer bands;                       // spike_bands.h; empty without the channel-major copy
  std::vector<CellExcess> excess;     // by block, then group, then row and column
  std::vector<int64_t> excess_begin;  // of each cell, and the end; empty without excess
  int32_t largest_excess = 0;         // in magnitude, of a whole code
  int64_t residual_codes = 0;
  Device device;
  DeviceTiles tiles;  // on a CUDA device, instead of cells and bands

  int64_t groups() const { return (columns + kScaleGroup - 1) / kScaleGroup; }
  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  int64_t band_count() const { return (rows + band_rows - 1) / band_rows; }
  int64_t band_bytes() const { return groups() * kBandGroupSlots * band_rows; }
  const std::byte* block(int64_t b) const { return cells.data() + b * groups() * kCellBytes; }

  std::span<const CellExcess> excess_of(int64_t block, int64_t group) const {
    if (excess_begin.empty()) return {};
    const auto cell = static_cast<size_t>(block * groups() + group);
    return {excess.data() + excess_begin[cell],
            static_cast<size_t>(excess_begin[cell + 1] - excess_begin[cell])};
  }
};

}  // namespace spb::spike
