#include "core/block_formats.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/half.h"
#include "core/tensor_view.h"

namespace spb {
namespace {

float f(uint16_t bits) { return to_float(f16{bits}); }

void dequantize(const BlockQ8_0& b, float* out) {
  const float d = f(b.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(b.q[i]);
}

void dequantize(const BlockQ4_0& b, float* out) {
  const float d = f(b.d);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((b.q[i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((b.q[i] >> 4) - 8);
  }
}

void dequantize(const BlockQ4_1& b, float* out) {
  const float d = f(b.d);
  const float m = f(b.m);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(b.q[i] & 15) + m;
    out[i + 16] = d * static_cast<float>(b.q[i] >> 4) + m;
  }
}

// Fifth bit of element i, as 0 or 16.
int fifth_bit(const uint8_t* qh, int i) { return ((qh[i / 8] >> (i % 8)) & 1) << 4; }

void dequantize(const BlockQ5_0& b, float* out) {
  const float d = f(b.d);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(((b.q[i] & 15) | fifth_bit(b.qh, i)) - 16);
    out[i + 16] = d * static_cast<float>(((b.q[i] >> 4) | fifth_bit(b.qh, i + 16)) - 16);
  }
}

void dequantize(const BlockQ5_1& b, float* out) {
  const float d = f(b.d);
  const float m = f(b.m);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((b.q[i] & 15) | fifth_bit(b.qh, i)) + m;
    out[i + 16] = d * static_cast<float>((b.q[i] >> 4) | fifth_bit(b.qh, i + 16)) + m;
  }
}

struct ScaleMin {
  int scale;
  int min;
};

// The 12 bytes hold eight 6-bit scales and eight 6-bit minima: those of sub-blocks 0..3 in the low
// six bits of bytes 0..3 and 4..7; those of 4..7 have their low nibbles in bytes 8..11 and their
// two high bits in the top of bytes 0..7.
ScaleMin scale_min(const uint8_t* s, int j) {
  if (j < 4) return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4)};
}

// Sub-blocks 2c and 2c + 1 share the 32 bytes q[32c..]: low nibbles are the first, high the second.
void dequantize(const BlockQ4_K& b, float* out) {
  const float d = f(b.d);
  const float dmin = f(b.dmin);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = scale_min(b.scales, j);
    const float scale = d * static_cast<float>(s.scale);
    const float offset = dmin * static_cast<float>(s.min);
    const uint8_t* q = b.q + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      out[32 * j + i] = scale * static_cast<float>((q[i] >> (j % 2 * 4)) & 15) - offset;
    }
  }
}

// As q4_k, with the fifth bit of element i of sub-block j in bit j of qh[i].
void dequantize(const BlockQ5_K& b, float* out) {
  const float d = f(b.d);
  const float dmin = f(b.dmin);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = scale_min(b.scales, j);
    const float scale = d * static_cast<float>(s.scale);
    const float offset = dmin * static_cast<float>(s.min);
    const uint8_t* q = b.q + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      const int code = ((q[i] >> (j % 2 * 4)) & 15) | (((b.qh[i] >> j) & 1) << 4);
      out[32 * j + i] = scale * static_cast<float>(code) - offset;
    }
  }
}

// Two halves of 128. In each, quarter c (32 elements) takes the low (c < 2) or high nibbles of
// ql[32 * (c % 2)..] and bits 2c, 2c + 1 of qh[0..31].
void dequantize(const BlockQ6_K& b, float* out) {
  const float d = f(b.d);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* ql = b.ql + 64 * half;
    const uint8_t* qh = b.qh + 32 * half;
    for (int c = 0; c < 4; ++c) {
      for (int i = 0; i < 32; ++i) {
        const int low = (ql[32 * (c % 2) + i] >> (c / 2 * 4)) & 15;
        const int code = (low | (((qh[i] >> (2 * c)) & 3) << 4)) - 32;
        const float scale = d * static_cast<float>(b.scales[8 * half + 2 * c + i / 16]);
        out[128 * half + 32 * c + i] = scale * static_cast<float>(code);
      }
    }
  }
}

template <typename Block>
void dequantize_blocks(const void* row, float* out, int64_t elements, int64_t block) {
  const auto* bytes = static_cast<const std::byte*>(row);
  for (int64_t i = 0; i < elements; i += block, bytes += sizeof(Block)) {
    Block b;
    std::memcpy(&b, bytes, sizeof b);
    dequantize(b, out + i);
  }
}

template <typename T>
void widen(const void* row, float* out, int64_t elements) {
  const auto* bytes = static_cast<const std::byte*>(row);
  for (int64_t i = 0; i < elements; ++i, bytes += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    out[i] = to_float(value);
  }
}

// 1 / d, or 0 where that would overflow; such a d is 0 in f16 anyway.
float inverse_of(float d) {
  return std::fabs(d) >= std::numeric_limits<float>::min() ? 1.0f / d : 0.0f;
}

uint16_t scale_bits(float scale) {
  const f16 half = to_f16(scale);
  check_data(std::isfinite(to_float(half)),
             "quantize: scale of a block: expected less than 65520 (f16), got {}", scale);
  return half.bits;
}

void quantize(const float* in, BlockQ8_0& b) {
  float largest = 0;
  for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(in[i]));
  const float d = largest / 127.0f;
  const float inverse = inverse_of(d);
  b.d = scale_bits(d);
  for (int i = 0; i < 32; ++i) b.q[i] = static_cast<int8_t>(std::lround(in[i] * inverse));
}

// Symmetric codes: the entry of largest magnitude maps to the end of the range that has one step
// more, so the full range [-half, half - 1] is used. Returns the scale.
template <typename Store>
float quantize_symmetric(const float* in, int half, Store store) {
  float extreme = 0;
  for (int i = 0; i < 32; ++i) {
    if (std::fabs(in[i]) > std::fabs(extreme)) extreme = in[i];
  }
  const float d = extreme / static_cast<float>(-half);
  const float inverse = inverse_of(d);
  for (int i = 0; i < 32; ++i) {
    const int code = static_cast<int>(in[i] * inverse + static_cast<float>(half) + 0.5f);
    store(i, std::clamp(code, 0, 2 * half - 1));
  }
  return d;
}

struct ScaleOffset {
  float d;
  float m;
};

template <typename Store>
ScaleOffset quantize_affine(const float* in, int levels, Store store) {
  const auto [low, high] = std::minmax_element(in, in + 32);
  const float d = (*high - *low) / static_cast<float>(levels - 1);
  // A range that overflows is refused when its scale is stored.
  const float inverse = std::isfinite(d) ? inverse_of(d) : 0.0f;
  for (int i = 0; i < 32; ++i) {
    const float step = inverse > 0 ? (in[i] - *low) * inverse : 0.0f;
    const int code = static_cast<int>(step + 0.5f);
    store(i, std::clamp(code, 0, levels - 1));
  }
  return {d, *low};
}

template <typename Block>
void store_nibble(Block& b, int i, int code) {
  b.q[i % 16] = static_cast<uint8_t>(b.q[i % 16] | ((code & 15) << (i / 16 * 4)));
}

template <typename Block>
void store_fifth(Block& b, int i, int code) {
  b.qh[i / 8] = static_cast<uint8_t>(b.qh[i / 8] | ((code >> 4) << (i % 8)));
}

void quantize(const float* in, BlockQ4_0& b) {
  b.d = scale_bits(quantize_symmetric(in, 8, [&](int i, int code) { store_nibble(b, i, code); }));
}

void quantize(const float* in, BlockQ5_0& b) {
  b.d = scale_bits(quantize_symmetric(in, 16, [&](int i, int code) {
    store_nibble(b, i, code);
    store_fifth(b, i, code);
  }));
}

void quantize(const float* in, BlockQ4_1& b) {
  const auto [d, m] = quantize_affine(in, 16, [&](int i, int code) { store_nibble(b, i, code); });
  b.d = scale_bits(d);
  b.m = scale_bits(m);
}

void quantize(const float* in, BlockQ5_1& b) {
  const auto [d, m] = quantize_affine(in, 32, [&](int i, int code) {
    store_nibble(b, i, code);
    store_fifth(b, i, code);
  });
  b.d = scale_bits(d);
  b.m = scale_bits(m);
}

template <typename Block>
void quantize_blocks(const float* in, void* row, int64_t elements) {
  auto* bytes = static_cast<std::byte*>(row);
  for (int64_t i = 0; i < elements; i += 32, bytes += sizeof(Block)) {
    Block b{};
    quantize(in + i, b);
    std::memcpy(bytes, &b, sizeof b);
  }
}

template <typename T, typename Convert>
void narrow(const float* in, void* row, int64_t elements, Convert convert) {
  auto* bytes = static_cast<std::byte*>(row);
  for (int64_t i = 0; i < elements; ++i, bytes += sizeof(T)) {
    const T value = convert(in[i]);
    check_data(std::isfinite(to_float(value)),
               "quantize: element {}: expected a number in the range of {}, got {}", i,
               name(kDTypeOf<T>), in[i]);
    std::memcpy(bytes, &value, sizeof value);
  }
}

void check_finite(const float* in, int64_t elements) {
  for (int64_t i = 0; i < elements; ++i) {
    check_data(std::isfinite(in[i]), "quantize: element {}: expected a finite number, got {}", i,
               in[i]);
  }
}

}  // namespace

void dequantize_row(DType dtype, const void* row, float* out, int64_t elements) {
  row_bytes(dtype, elements);  // checks the multiple
  switch (dtype) {
    case DType::kF32: return widen<float>(row, out, elements);
    case DType::kF16: return widen<f16>(row, out, elements);
    case DType::kBF16: return widen<bf16>(row, out, elements);
    case DType::kQ8_0: return dequantize_blocks<BlockQ8_0>(row, out, elements, 32);
    case DType::kQ4_0: return dequantize_blocks<BlockQ4_0>(row, out, elements, 32);
    case DType::kQ4_1: return dequantize_blocks<BlockQ4_1>(row, out, elements, 32);
    case DType::kQ5_0: return dequantize_blocks<BlockQ5_0>(row, out, elements, 32);
    case DType::kQ5_1: return dequantize_blocks<BlockQ5_1>(row, out, elements, 32);
    case DType::kQ4_K: return dequantize_blocks<BlockQ4_K>(row, out, elements, 256);
    case DType::kQ5_K: return dequantize_blocks<BlockQ5_K>(row, out, elements, 256);
    case DType::kQ6_K: return dequantize_blocks<BlockQ6_K>(row, out, elements, 256);
    case DType::kI8:
    case DType::kI32:
    case DType::kI64: break;
  }
  fail(ErrorKind::kUsage, "dequantize: dtype: expected a float or block type, got {}", name(dtype));
}

bool can_quantize(DType dtype) {
  return is_float(dtype) || (!is_plain(dtype) && dtype < DType::kQ4_K);
}

void quantize_row(DType dtype, const float* in, void* row, int64_t elements) {
  row_bytes(dtype, elements);
  check_finite(in, elements);
  switch (dtype) {
    case DType::kF32: return narrow<float>(in, row, elements, [](float x) { return x; });
    case DType::kF16: return narrow<f16>(in, row, elements, to_f16);
    case DType::kBF16: return narrow<bf16>(in, row, elements, to_bf16);
    case DType::kQ8_0: return quantize_blocks<BlockQ8_0>(in, row, elements);
    case DType::kQ4_0: return quantize_blocks<BlockQ4_0>(in, row, elements);
    case DType::kQ4_1: return quantize_blocks<BlockQ4_1>(in, row, elements);
    case DType::kQ5_0: return quantize_blocks<BlockQ5_0>(in, row, elements);
    case DType::kQ5_1: return quantize_blocks<BlockQ5_1>(in, row, elements);
    default: break;
  }
  fail(ErrorKind::kUsage, "quantize: dtype: cannot write {}", name(dtype));
}

}  // namespace spb
