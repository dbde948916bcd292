#include "core/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/rng.h"

namespace spb {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// The value of a pattern with `mantissa` bits, from the definition of the format.
double value_of(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const uint32_t exponent = (bits >> mantissa_bits) & ((1u << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits >> 15) != 0 ? -1.0 : 1.0;
  if (exponent == (1u << exponent_bits) - 1) return mantissa != 0 ? NAN : sign * kInf;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1u << mantissa_bits),
                           static_cast<int>(exponent) - bias - mantissa_bits);
}

template <typename T>
class HalfTest : public ::testing::Test {};

struct F16 {
  using Type = f16;
  static constexpr int kExponentBits = 5, kMantissaBits = 10;
  static Type round(float x) { return to_f16(x); }
};
struct Bf16 {
  using Type = bf16;
  static constexpr int kExponentBits = 8, kMantissaBits = 7;
  static Type round(float x) { return to_bf16(x); }
};
using Formats = ::testing::Types<F16, Bf16>;
TYPED_TEST_SUITE(HalfTest, Formats);

TYPED_TEST(HalfTest, EveryPatternHasItsValueAndComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const typename TypeParam::Type half{static_cast<uint16_t>(bits)};
    const double expected = value_of(bits, TypeParam::kExponentBits, TypeParam::kMantissaBits);
    const float value = to_float(half);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_TRUE(std::isnan(to_float(TypeParam::round(value)))) << bits;
      continue;
    }
    EXPECT_EQ(value, expected) << bits;
    EXPECT_EQ(std::signbit(value), bits >= 0x8000) << bits;
    EXPECT_EQ(TypeParam::round(value).bits, bits);
  }
}

// Between two neighbors the nearer one wins, and the one with an even pattern in the middle.
TYPED_TEST(HalfTest, RoundsToNearestEven) {
  const uint32_t infinity = ((1u << TypeParam::kExponentBits) - 1) << TypeParam::kMantissaBits;
  for (uint32_t bits = 0; bits < infinity; ++bits) {
    const double low = value_of(bits, TypeParam::kExponentBits, TypeParam::kMantissaBits);
    // The step is the same above the largest number, where rounding up means infinity.
    const double high =
        bits + 1 < infinity
            ? value_of(bits + 1, TypeParam::kExponentBits, TypeParam::kMantissaBits)
            : 2 * low - value_of(bits - 1, TypeParam::kExponentBits, TypeParam::kMantissaBits);
    const auto middle = static_cast<float>((low + high) / 2);
    if (middle != (low + high) / 2) continue;  // not a float: below the subnormals of bf16
    EXPECT_EQ(TypeParam::round(middle).bits, (bits & 1) != 0 ? bits + 1 : bits);
    EXPECT_EQ(TypeParam::round(std::nextafter(middle, 0.0f)).bits, bits);
    EXPECT_EQ(TypeParam::round(std::nextafter(middle, kInf)).bits, bits + 1);
    EXPECT_EQ(TypeParam::round(-middle).bits, 0x8000u | TypeParam::round(middle).bits);
  }
}

TYPED_TEST(HalfTest, RandomFloatsRoundToTheNearest) {
  Rng rng(1);
  for (int i = 0; i < 300000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(rng.next()));
    const auto half = TypeParam::round(x);
    const float back = to_float(half);
    if (std::isnan(x) || std::isinf(back)) continue;
    const auto magnitude = static_cast<uint16_t>(half.bits & 0x7fffu);
    const double error = std::fabs(static_cast<double>(back) - x);
    for (const int step : {-1, 1}) {
      if (magnitude == 0 && step < 0) continue;
      const float neighbor = to_float(typename TypeParam::Type{
          static_cast<uint16_t>((half.bits & 0x8000u) | (magnitude + step))});
      EXPECT_LE(error, std::fabs(static_cast<double>(neighbor) - x)) << x;
    }
  }
}

TEST(Half, OverflowAndSpecialValues) {
  EXPECT_EQ(to_float(to_f16(65504.0f)), 65504.0f);
  EXPECT_EQ(to_float(to_f16(65519.0f)), 65504.0f);
  EXPECT_EQ(to_float(to_f16(65520.0f)), kInf);
  EXPECT_EQ(to_float(to_f16(-1e30f)), -kInf);
  EXPECT_EQ(to_float(to_bf16(std::numeric_limits<float>::max())), kInf);
  EXPECT_EQ(to_float(to_f16(-kInf)), -kInf);
  EXPECT_EQ(to_float(to_bf16(kInf)), kInf);
  // A NaN whose payload lies in the bits that are cut off must not become infinity.
  const auto quiet_only_low = std::bit_cast<float>(0x7f800001u);
  EXPECT_TRUE(std::isnan(to_float(to_f16(quiet_only_low))));
  EXPECT_TRUE(std::isnan(to_float(to_bf16(quiet_only_low))));
}

}  // namespace
}  // namespace spb
