// A row of numbers as 8-bit codes with one scale.
//
//   scale   = clamp(max_c |x[c]| / 127, 1e-5, 1e4)
//   code[c] = clamp(round_half_even(x[c] / scale), -128, 127)
//
// and the value that code[c] stands for is scale * code[c]. f32 divisions and products, rounded
// once each: the same bits everywhere. Source: keys and values of the published W8ASpike code.
#pragma once

#include <cstdint>
#include <string_view>

namespace spb {

inline constexpr float kSmallestInt8Scale = 1e-5f;
inline constexpr float kLargestInt8Scale = 1e4f;

// Data error "operation: row r, column c: expected a finite number, got nan"; `row` is the name of
// the row in that message.
float int8_scale(std::string_view operation, int64_t row, const float* x, int64_t columns);

// A whole number: adding the shifter leaves no bits for a fraction.
inline float int8_code(float x, float scale) {
  constexpr float kShifter = 12582912.0f;  // 1.5 * 2^23
  const float quotient = x / scale;
  const float above = quotient < -128.0f ? -128.0f : quotient;
  const float clamped = above > 127.0f ? 127.0f : above;
  return (clamped + kShifter) - kShifter;
}

// Writes the codes of a row and returns its scale. Errors as int8_scale.
float quantize_int8_row(std::string_view operation, int64_t row, const float* x, int64_t columns,
                        int8_t* codes);

}  // namespace spb
