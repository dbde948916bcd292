// Interleaving of block rows into cells (layout in matmul_cells.h).
#include "core/block_formats.h"
#include "ops/matmul/matmul_block_rows.h"

namespace spb::ops::SPB_ISA {
namespace {

// Where the blocks of kLanes rows are, and where their cells go.
template <bool kFull>
struct Lanes {
  RowWords<kFull> blocks;
  std::byte* cell;

  Words words(int64_t from) const { return load_words(blocks, from); }
  void put_words(int vector, VecI words) const {
    __builtin_memcpy(cell + 64 * vector + 4 * blocks.first_row, &words, sizeof words);
  }
  // f16 scales `from` bytes into the blocks, to an array of 16 at byte `to` of the cell.
  void copy_halves(int64_t from, int64_t to) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      __builtin_memcpy(cell + to + 2 * (blocks.first_row + lane), blocks.at(lane) + from, 2);
    }
  }
  // Byte `index` of every word to an array of 16 bytes at byte `to` of the cell.
  void put_bytes(int64_t to, VecI words, int index) const {
    store_low_bytes(reinterpret_cast<int8_t*>(cell + to) + blocks.first_row, words >> (8 * index));
  }
};

template <DType kDType, bool kFull>
void pack_block(Lanes<kFull> lanes) {
  using Header = BlockHeader<kDType>;
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr int64_t kScales = kFormat.cell_bytes - (kFormat.minima ? 64 : 32);
  constexpr int32_t kOffset = kFormat.bits == 8 ? static_cast<int32_t>(0x80808080u) : 0;
  for (int h = 0; h < (kFormat.bits == 8 ? 2 : 1); ++h) {
    const Words words = lanes.words(Header::kCodes + 16 * h);
    for (int j = 0; j < 4; ++j) lanes.put_words(4 * h + j, words.w[j] ^ kOffset);
  }
  if constexpr (kFormat.bits == 5) {
    lanes.put_words(4, spread_fifth_bits(load_word(lanes.blocks, Header::kHigh)));
  }
  lanes.copy_halves(0, kScales);
  if constexpr (kFormat.minima) lanes.copy_halves(2, kScales + 32);
}

// Codes of two sub-blocks of a K-block are the low and the high nibbles of the same 32 bytes; a
// cell wants both nibbles of a byte from one sub-block.
struct Nibbles {
  Words first, second;

  template <bool kFull>
  Nibbles(const Lanes<kFull>& lanes, int64_t from)
      : first(lanes.words(from)), second(lanes.words(from + 16)) {}
  template <bool kFull>
  void put(const Lanes<kFull>& lanes, bool high) const {
    constexpr int32_t kLow = 0x0f0f0f0f;
    for (int j = 0; j < 4; ++j) {
      const VecI a = first.w[j];
      const VecI b = second.w[j];
      lanes.put_words(j, high ? ((a >> 4) & kLow) | (b & ~kLow) : (a & kLow) | ((b & kLow) << 4));
    }
  }
};

// The 6-bit scales and minima of q4_k and q5_k, packed as in core/block_formats.cpp: byte j of
// vector i belongs to cell 4 i + j.
struct ScalesAndMinima {
  VecI scale[2];
  VecI minimum[2];

  explicit ScalesAndMinima(const Words& s) {
    scale[0] = s.w[0] & 0x3f3f3f3f;
    minimum[0] = s.w[1] & 0x3f3f3f3f;
    scale[1] = (s.w[2] & 0x0f0f0f0f) | (((s.w[0] >> 6) & 0x03030303) << 4);
    minimum[1] = ((s.w[2] >> 4) & 0x0f0f0f0f) | (((s.w[1] >> 6) & 0x03030303) << 4);
  }
  template <bool kFull>
  void put(const Lanes<kFull>& lanes, int cell, int64_t to) const {
    lanes.put_bytes(to, scale[cell / 4], cell % 4);
    lanes.put_bytes(to + 16, minimum[cell / 4], cell % 4);
  }
};

VecI fifth_bits(const Words* high, int cell) {
  VecI fifth = {};
  for (int j = 0; j < 8; ++j) fifth |= ((high[j / 4].w[j % 4] >> cell) & 0x01010101) << j;
  return fifth;
}

template <DType kDType, bool kFull>
void pack_scaled_block(Lanes<kFull> lanes) {
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr bool kFive = kFormat.bits == 5;
  constexpr int64_t kCodes = kFive ? 48 : 16;
  lanes.copy_halves(0, 0);
  lanes.copy_halves(2, 32);
  lanes.cell += kFormat.super_bytes;
  const ScalesAndMinima scales(lanes.words(4));
  Words high[2] = {};
  if constexpr (kFive) {
    high[0] = lanes.words(16);
    high[1] = lanes.words(32);
  }
  for (int pair = 0; pair < 4; ++pair) {
    const Nibbles nibbles(lanes, kCodes + 32 * pair);
    for (int cell = 2 * pair; cell < 2 * pair + 2; ++cell) {
      nibbles.put(lanes, cell % 2 != 0);
      if constexpr (kFive) lanes.put_words(4, fifth_bits(high, cell));
      scales.put(lanes, cell, kFormat.cell_bytes - 32);
      lanes.cell += kFormat.cell_bytes;
    }
  }
}

VecI upper_bits(const Words& high, int quarter) {
  VecI upper = {};
  for (int j = 0; j < 4; ++j) upper |= ((high.w[j] >> (2 * quarter)) & 0x03030303) << (2 * j);
  return upper;
}

template <bool kFull>
void pack_q6_k(Lanes<kFull> lanes) {
  constexpr CellFormat kFormat = cell_format(DType::kQ6_K);
  lanes.copy_halves(208, 0);
  lanes.cell += kFormat.super_bytes;
  const Words scales = lanes.words(192);
  for (int half = 0; half < 2; ++half) {
    const Nibbles nibbles[2] = {{lanes, 64 * half}, {lanes, 64 * half + 32}};
    const Words high[2] = {lanes.words(128 + 32 * half), lanes.words(144 + 32 * half)};
    for (int quarter = 0; quarter < 4; ++quarter) {
      nibbles[quarter % 2].put(lanes, quarter >= 2);
      for (int h = 0; h < 2; ++h) {
        lanes.put_words(4 + h, upper_bits(high[h], quarter));
        lanes.put_bytes(384 + 16 * h, scales.w[2 * half + quarter / 2], 2 * (quarter % 2) + h);
      }
      lanes.cell += kFormat.cell_bytes;
    }
  }
}

template <DType kDType, bool kFull>
void pack_one(const Lanes<kFull>& lanes) {
  if constexpr (kDType == DType::kQ6_K) {
    pack_q6_k(lanes);
  } else if constexpr (cell_format(kDType).super_cells > 0) {
    pack_scaled_block<kDType>(lanes);
  } else {
    pack_block<kDType>(lanes);
  }
}

template <DType kDType, int64_t kBlockBytes, bool kFull>
void pack_blocks(const PackArgs& a) {
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr int kCells = kFormat.super_cells > 0 ? kFormat.super_cells : 1;
  constexpr int64_t kGroupedBytes = kCells * kFormat.cell_bytes + kFormat.super_bytes;
  const int64_t blocks = a.columns / (kCells * kCellColumns);
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch_next_group(a.rows, a.row_stride, b, kBlockBytes);
    for (int first_row = 0; first_row < kGroupRows; first_row += kLanes) {
      const RowWords<kFull> rows{a.rows + b * kBlockBytes, a.row_stride, a.row_count, first_row};
      pack_one<kDType>(Lanes<kFull>{rows, a.group + b * kGroupedBytes});
    }
  }
}

template <DType kDType, typename Block>
void pack(const PackArgs& a) {
  constexpr int64_t kBlockBytes = sizeof(Block);
  if (a.row_count == kGroupRows) return pack_blocks<kDType, kBlockBytes, true>(a);
  pack_blocks<kDType, kBlockBytes, false>(a);
}

}  // namespace

const PackKernels kPackKernels = {pack<DType::kQ8_0, BlockQ8_0>, pack<DType::kQ4_0, BlockQ4_0>,
                                  pack<DType::kQ4_1, BlockQ4_1>, pack<DType::kQ5_0, BlockQ5_0>,
                                  pack<DType::kQ5_1, BlockQ5_1>, pack<DType::kQ4_K, BlockQ4_K>,
                                  pack<DType::kQ5_K, BlockQ5_K>, pack<DType::kQ6_K, BlockQ6_K>};

}  // namespace spb::ops::SPB_ISA
