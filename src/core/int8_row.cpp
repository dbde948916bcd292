#include "core/int8_row.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"

namespace spb {

float int8_scale(std::string_view operation, int64_t row, const float* x, int64_t columns) {
  // Magnitudes are ordered like their bits, infinities and what is no number above the others.
  constexpr uint32_t kInfinity = 0x7f800000u;
  uint32_t largest = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[c]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest >= kInfinity) {
    const float* bad = std::find_if_not(x, x + columns, [](float v) { return std::isfinite(v); });
    fail(ErrorKind::kData, "{}: row {}, column {}: expected a finite number, got {}", operation,
         row, bad - x, *bad);
  }
  return std::clamp(std::bit_cast<float>(largest) / 127.0f, kSmallestInt8Scale, kLargestInt8Scale);
}

float quantize_int8_row(std::string_view operation, int64_t row, const float* x, int64_t columns,
                        int8_t* codes) {
  const float scale = int8_scale(operation, row, x, columns);
  for (int64_t c = 0; c < columns; ++c) codes[c] = static_cast<int8_t>(int8_code(x[c], scale));
  return scale;
}

}  // namespace spb
