// Interleaving of block rows into cells (layout in matmul_cells.h): the four bytes that a dot
// product takes together move as one 32-bit word, and words of several rows change places with the
// columns in registers.
#include "core/block_formats.h"
#include "core/simd/bytes.h"
#include "core/simd/transpose.h"
#include "ops/matmul/matmul_cells.h"

namespace spb::ops::SPB_ISA {
namespace {
using namespace spb::SPB_ISA;

// Where the blocks of kLanes rows are, and where their cells go.
struct Lanes {
  const std::byte* const* rows;
  int64_t offset;  // of the current block in every row
  std::byte* cell;
  int first_row;

  const std::byte* block(int lane) const { return rows[first_row + lane] + offset; }
  void put_words(int vector, VecI words) const {
    __builtin_memcpy(cell + 64 * vector + 4 * first_row, &words, sizeof words);
  }
  // f16 scales `from` bytes into the blocks, to an array of 16 at byte `to` of the cell.
  void copy_halves(int64_t from, int64_t to) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      __builtin_memcpy(cell + to + 2 * (first_row + lane), block(lane) + from, 2);
    }
  }
  // Byte `index` of every word to an array of 16 bytes at byte `to` of the cell.
  void put_bytes(int64_t to, VecI words, int index) const {
    store_low_bytes(reinterpret_cast<int8_t*>(cell + to) + first_row, words >> (8 * index));
  }
};

#if defined(__AVX2__)
__m128i load_16(const std::byte* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
#endif

// 16 bytes, `from` bytes into their blocks, of lanes `first`, `first` + 4, ...
Vec load_every_fourth(const Lanes& lanes, int64_t from, int first) {
#if defined(__AVX512F__)
  __m512i v = _mm512_castsi128_si512(load_16(lanes.block(first) + from));
  v = _mm512_inserti32x4(v, load_16(lanes.block(first + 4) + from), 1);
  v = _mm512_inserti32x4(v, load_16(lanes.block(first + 8) + from), 2);
  return (Vec)_mm512_inserti32x4(v, load_16(lanes.block(first + 12) + from), 3);
#elif defined(__AVX2__)
  const __m256i v = _mm256_castsi128_si256(load_16(lanes.block(first) + from));
  return (Vec)_mm256_inserti128_si256(v, load_16(lanes.block(first + 4) + from), 1);
#else
  return (Vec)load_int(lanes.block(first) + from);
#endif
}

// Four words of every lane, `from` bytes into its block: vector j holds word j.
struct Words {
  VecI w[4];
};

Words load_words(const Lanes& lanes, int64_t from) {
  Vec v[4];
  for (int i = 0; i < 4; ++i) v[i] = load_every_fourth(lanes, from, i);
  const Vec even[2] = {exchange_low<2>(v[0], v[2]), exchange_low<2>(v[1], v[3])};
  const Vec odd[2] = {exchange_high<2>(v[0], v[2]), exchange_high<2>(v[1], v[3])};
  return {{(VecI)exchange_low<1>(even[0], even[1]), (VecI)exchange_high<1>(even[0], even[1]),
           (VecI)exchange_low<1>(odd[0], odd[1]), (VecI)exchange_high<1>(odd[0], odd[1])}};
}

// One word of every lane.
VecI load_word(const Lanes& lanes, int64_t from) {
  int32_t words[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    __builtin_memcpy(&words[lane], lanes.block(lane) + from, sizeof(int32_t));
  }
  return load_int(words);
}

void copy_words(const Lanes& lanes, int64_t from) {
  const Words words = load_words(lanes, from);
  for (int j = 0; j < 4; ++j) lanes.put_words(j, words.w[j]);
}

// Bit 4 j + b of each lane to bit j of its byte b.
VecI spread_fifth_bits(VecI bits) {
  VecI result = {};
  for (int j = 0; j < 8; ++j) {
    const VecI four = (bits >> (4 * j)) & 15;
    result |= ((four | four << 7 | four << 14 | four << 21) & 0x01010101) << j;
  }
  return result;
}

template <DType kDType>
void pack_block(Lanes lanes) {
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr int kHeader = kFormat.minima ? 4 : 2;  // d, or d and m
  constexpr int kHigh = kFormat.bits == 5 ? 4 : 0;
  constexpr int64_t kScales = kFormat.cell_bytes - (kFormat.minima ? 64 : 32);
  if constexpr (kFormat.bits == 8) {
    for (int h = 0; h < 2; ++h) {
      const Words words = load_words(lanes, kHeader + 16 * h);
      const VecI offset = broadcast_int(static_cast<int32_t>(0x80808080u));
      for (int j = 0; j < 4; ++j) lanes.put_words(4 * h + j, words.w[j] ^ offset);
    }
  } else {
    copy_words(lanes, kHeader + kHigh);
  }
  if constexpr (kFormat.bits == 5) {
    lanes.put_words(4, spread_fifth_bits(load_word(lanes, kHeader)));
  }
  lanes.copy_halves(0, kScales);
  if constexpr (kFormat.minima) lanes.copy_halves(2, kScales + 32);
}

// Codes of two sub-blocks of a K-block are the low and the high nibbles of the same 32 bytes; a
// cell wants both nibbles of a byte from one sub-block.
struct Nibbles {
  Words first, second;

  Nibbles(const Lanes& lanes, int64_t from)
      : first(load_words(lanes, from)), second(load_words(lanes, from + 16)) {}
  void put(const Lanes& lanes, bool high) const {
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

  explicit ScalesAndMinima(const Lanes& lanes) {
    const Words s = load_words(lanes, 4);
    scale[0] = s.w[0] & 0x3f3f3f3f;
    minimum[0] = s.w[1] & 0x3f3f3f3f;
    scale[1] = (s.w[2] & 0x0f0f0f0f) | (((s.w[0] >> 6) & 0x03030303) << 4);
    minimum[1] = ((s.w[2] >> 4) & 0x0f0f0f0f) | (((s.w[1] >> 6) & 0x03030303) << 4);
  }
  void put(const Lanes& lanes, int cell, int64_t to) const {
    lanes.put_bytes(to, scale[cell / 4], cell % 4);
    lanes.put_bytes(to + 16, minimum[cell / 4], cell % 4);
  }
};

template <DType kDType>
void pack_scaled_block(Lanes lanes) {
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr bool kFive = kFormat.bits == 5;
  constexpr int64_t kCodes = kFive ? 48 : 16;
  lanes.copy_halves(0, 0);
  lanes.copy_halves(2, 32);
  lanes.cell += kFormat.super_bytes;
  const ScalesAndMinima scales(lanes);
  Words high[2] = {};
  if constexpr (kFive) {
    high[0] = load_words(lanes, 16);
    high[1] = load_words(lanes, 32);
  }
  for (int pair = 0; pair < 4; ++pair) {
    const Nibbles nibbles(lanes, kCodes + 32 * pair);
    for (int cell = 2 * pair; cell < 2 * pair + 2; ++cell) {
      nibbles.put(lanes, cell % 2 != 0);
      if constexpr (kFive) {
        VecI fifth = {};
        for (int j = 0; j < 8; ++j) fifth |= ((high[j / 4].w[j % 4] >> cell) & 0x01010101) << j;
        lanes.put_words(4, fifth);
      }
      scales.put(lanes, cell, kFormat.cell_bytes - 32);
      lanes.cell += kFormat.cell_bytes;
    }
  }
}

void pack_q6_k(Lanes lanes) {
  constexpr CellFormat kFormat = cell_format(DType::kQ6_K);
  lanes.copy_halves(208, 0);
  lanes.cell += kFormat.super_bytes;
  const Words scales = load_words(lanes, 192);
  for (int half = 0; half < 2; ++half) {
    const Nibbles nibbles[2] = {{lanes, 64 * half}, {lanes, 64 * half + 32}};
    const Words high[2] = {load_words(lanes, 128 + 32 * half), load_words(lanes, 144 + 32 * half)};
    for (int quarter = 0; quarter < 4; ++quarter) {
      nibbles[quarter % 2].put(lanes, quarter >= 2);
      for (int h = 0; h < 2; ++h) {
        VecI two = {};
        for (int j = 0; j < 4; ++j) {
          two |= ((high[h].w[j] >> (2 * quarter)) & 0x03030303) << (2 * j);
        }
        lanes.put_words(4 + h, two);
        lanes.put_bytes(384 + 16 * h, scales.w[2 * half + quarter / 2], 2 * (quarter % 2) + h);
      }
      lanes.cell += kFormat.cell_bytes;
    }
  }
}

template <DType kDType>
void pack_one(const Lanes& lanes) {
  if constexpr (kDType == DType::kQ6_K) {
    pack_q6_k(lanes);
  } else if constexpr (cell_format(kDType).super_cells > 0) {
    pack_scaled_block<kDType>(lanes);
  } else {
    pack_block<kDType>(lanes);
  }
}

// The rows of the next group lie behind these: they are asked for while these are rearranged.
void prefetch(const std::byte* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

template <DType kDType, typename Block>
void pack_rows(const PackArgs& a) {
  constexpr CellFormat kFormat = cell_format(kDType);
  constexpr int kCells = kFormat.super_cells > 0 ? kFormat.super_cells : 1;
  constexpr int64_t kBlockBytes = sizeof(Block);
  constexpr int64_t kGroupedBytes = kCells * kFormat.cell_bytes + kFormat.super_bytes;
  const int64_t blocks = a.columns / (kCells * kCellColumns);
  const std::byte* ahead = a.rows[kGroupRows - 1] + blocks * kBlockBytes;
  for (int64_t b = 0; b < blocks; ++b) {
    prefetch(ahead + b * kGroupRows * kBlockBytes, kGroupRows * kBlockBytes);
    for (int first_row = 0; first_row < kGroupRows; first_row += kLanes) {
      pack_one<kDType>({a.rows, b * kBlockBytes, a.group + b * kGroupedBytes, first_row});
    }
  }
}

}  // namespace

const PackKernels kPackKernels = {
    pack_rows<DType::kQ8_0, BlockQ8_0>, pack_rows<DType::kQ4_0, BlockQ4_0>,
    pack_rows<DType::kQ4_1, BlockQ4_1>, pack_rows<DType::kQ5_0, BlockQ5_0>,
    pack_rows<DType::kQ5_1, BlockQ5_1>, pack_rows<DType::kQ4_K, BlockQ4_K>,
    pack_rows<DType::kQ5_K, BlockQ5_K>, pack_rows<DType::kQ6_K, BlockQ6_K>};

}  // namespace spb::ops::SPB_ISA
