// Interleaving of block rows into cells: moves of 32-bit words, four codes at a time.
#include <cstring>

#include "core/block_formats.h"
#include "core/error.h"
#include "ops/matmul/matmul_cells.h"

namespace spb::ops {
namespace {

constexpr uint32_t kLowNibbles = 0x0f0f0f0fu;

uint32_t word(const void* p, int index) {
  uint32_t value;
  std::memcpy(&value, static_cast<const std::byte*>(p) + 4 * index, sizeof value);
  return value;
}

// Where row r of a cell goes.
class CellRow {
 public:
  CellRow(std::byte* cell, int row) : cell_(cell), row_(row) {}

  void put_word(int vector, uint32_t value) const {
    std::memcpy(cell_ + 64 * vector + 4 * row_, &value, sizeof value);
  }
  // An entry of an array of 16, one per row, that starts at byte `offset` of the cell.
  template <typename T>
  void put_scale(int offset, T value) const {
    std::memcpy(cell_ + offset + static_cast<int>(sizeof(T)) * row_, &value, sizeof value);
  }

 private:
  std::byte* cell_;
  int row_;
};

// Bit 4 j + b of `bits` to bit j of byte b.
uint32_t spread_fifth_bits(uint32_t bits) {
  uint32_t result = 0;
  for (int j = 0; j < 8; ++j) {
    const uint32_t four = (bits >> (4 * j)) & 15u;
    result |= ((four * 0x00204081u) & 0x01010101u) << j;
  }
  return result;
}

void pack(const BlockQ8_0& b, const CellRow& out) {
  for (int j = 0; j < 8; ++j) out.put_word(j, word(b.q, j) ^ 0x80808080u);
  out.put_scale(512, b.d);
}

void pack(const BlockQ4_0& b, const CellRow& out) {
  for (int j = 0; j < 4; ++j) out.put_word(j, word(b.q, j));
  out.put_scale(256, b.d);
}

void pack(const BlockQ4_1& b, const CellRow& out) {
  for (int j = 0; j < 4; ++j) out.put_word(j, word(b.q, j));
  out.put_scale(256, b.d);
  out.put_scale(288, b.m);
}

void pack(const BlockQ5_0& b, const CellRow& out) {
  for (int j = 0; j < 4; ++j) out.put_word(j, word(b.q, j));
  out.put_word(4, spread_fifth_bits(word(b.qh, 0)));
  out.put_scale(320, b.d);
}

void pack(const BlockQ5_1& b, const CellRow& out) {
  for (int j = 0; j < 4; ++j) out.put_word(j, word(b.q, j));
  out.put_word(4, spread_fifth_bits(word(b.qh, 0)));
  out.put_scale(320, b.d);
  out.put_scale(352, b.m);
}

// Sub-blocks 2 c and 2 c + 1 are the low and high nibbles of the same 32 bytes; a cell wants both
// nibbles of a byte from one sub-block.
void pack_nibbles(const uint8_t* q, bool high, const CellRow& out) {
  for (int j = 0; j < 4; ++j) {
    const uint32_t first = word(q, j);
    const uint32_t second = word(q, j + 4);
    out.put_word(j, high ? ((first >> 4) & kLowNibbles) | (second & ~kLowNibbles)
                         : (first & kLowNibbles) | ((second & kLowNibbles) << 4));
  }
}

// The 6-bit scale and minimum of sub-block j, packed as in core/block_formats.cpp.
void pack_scale_min(const uint8_t* s, int j, int offset, const CellRow& out) {
  const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
  const int minimum = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  out.put_scale(offset, static_cast<uint8_t>(scale));
  out.put_scale(offset + 16, static_cast<uint8_t>(minimum));
}

void pack_cell(const BlockQ4_K& b, int cell, const CellRow& out) {
  pack_nibbles(b.q + cell / 2 * 32, cell % 2 != 0, out);
  pack_scale_min(b.scales, cell, 256, out);
}

void pack_cell(const BlockQ5_K& b, int cell, const CellRow& out) {
  pack_nibbles(b.q + cell / 2 * 32, cell % 2 != 0, out);
  uint32_t high = 0;
  for (int j = 0; j < 8; ++j) high |= ((word(b.qh, j) >> cell) & 0x01010101u) << j;
  out.put_word(4, high);
  pack_scale_min(b.scales, cell, 320, out);
}

void pack_cell(const BlockQ6_K& b, int cell, const CellRow& out) {
  const int half = cell / 4;
  const int quarter = cell % 4;
  pack_nibbles(b.ql + 64 * half + 32 * (quarter % 2), quarter >= 2, out);
  for (int h = 0; h < 2; ++h) {
    uint32_t high = 0;
    for (int j = 0; j < 4; ++j) {
      const uint32_t two = word(b.qh + 32 * half, 4 * h + j) >> (2 * quarter);
      high |= (two & 0x03030303u) << (2 * j);
    }
    out.put_word(4 + h, high);
    out.put_scale(384 + 16 * h, b.scales[8 * half + 2 * quarter + h]);
  }
}

template <typename Block>
void pack_row(const std::byte* row, int64_t columns, DType dtype, std::byte* group, int lane) {
  const CellFormat format = cell_format(dtype);
  for (int64_t k = 0; k < columns; k += kCellColumns) {
    Block block;
    std::memcpy(&block, row, sizeof block);
    pack(block, CellRow(group, lane));
    row += sizeof block;
    group += format.cell_bytes;
  }
}

template <typename Block>
void pack_k_row(const std::byte* row, int64_t columns, DType dtype, std::byte* group, int lane) {
  const CellFormat format = cell_format(dtype);
  for (int64_t k = 0; k < columns; k += kCellColumns * format.super_cells) {
    Block block;
    std::memcpy(&block, row, sizeof block);
    CellRow(group, lane).put_scale(0, block.d);
    if constexpr (requires { block.dmin; }) CellRow(group, lane).put_scale(32, block.dmin);
    group += format.super_bytes;
    for (int cell = 0; cell < format.super_cells; ++cell) {
      pack_cell(block, cell, CellRow(group, lane));
      group += format.cell_bytes;
    }
    row += sizeof block;
  }
}

auto row_packer(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0: return pack_row<BlockQ8_0>;
    case DType::kQ4_0: return pack_row<BlockQ4_0>;
    case DType::kQ4_1: return pack_row<BlockQ4_1>;
    case DType::kQ5_0: return pack_row<BlockQ5_0>;
    case DType::kQ5_1: return pack_row<BlockQ5_1>;
    case DType::kQ4_K: return pack_k_row<BlockQ4_K>;
    case DType::kQ5_K: return pack_k_row<BlockQ5_K>;
    case DType::kQ6_K: return pack_k_row<BlockQ6_K>;
    default: fail(ErrorKind::kUsage, "matmul: cannot interleave {}", name(dtype));
  }
}

}  // namespace

void pack_group(DType dtype, const std::byte* rows, int64_t row_stride, int64_t row_count,
                int64_t columns, std::byte* group) {
  if (row_count < kGroupRows) {
    std::memset(group, 0, static_cast<size_t>(group_bytes(dtype, columns)));
  }
  const auto pack_one = row_packer(dtype);
  for (int64_t r = 0; r < row_count; ++r) {
    pack_one(rows + r * row_stride, columns, dtype, group, static_cast<int>(r));
  }
}

}  // namespace spb::ops
