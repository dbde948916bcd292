#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "core/half.h"
#include "core/test_tensors.h"
#include "core/vec_test_kernels.h"

namespace spb {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

class VecTest : public ::testing::TestWithParam<Isa> {
 protected:
  test::IsaScope level_{GetParam()};
  VecProbe vec_ =
      select_isa(&isa_portable::vec_probe, &isa_avx2::vec_probe, &isa_avx512::vec_probe)();
  size_t lanes_ = static_cast<size_t>(vec_.lanes);
};

INSTANTIATE_TEST_SUITE_P(Levels, VecTest, ::testing::ValuesIn(test::isa_levels()));

TEST_P(VecTest, ExpIsAccurateOverItsWholeRange) {
  std::vector<float> x, y;
  for (float v = -87.33f; v < 88.72f; v += 1e-4f * std::max(1.0f, std::fabs(v))) x.push_back(v);
  for (float v = 1e-30f; v < 1.0f; v *= 1.5f) x.insert(x.end(), {v, -v});
  x.resize((x.size() + lanes_ - 1) / lanes_ * lanes_, 0.0f);
  y.resize(x.size());
  vec_.exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(double{x[i]});
    ASSERT_NEAR(y[i], expected, 2e-7 * expected) << x[i];
  }
}

TEST_P(VecTest, ExpAtTheEdges) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x{-87.34f, -88.0f, -1e4f, -3e38f, -kInf, 0.0f, 89.0f, 1e4f, 3e38f, kInf, nan};
  x.resize(16, nan);
  std::vector<float> y(16);
  vec_.exp(x.data(), y.data(), 16);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(y[i], 0.0f) << x[i];
  EXPECT_EQ(y[5], 1.0f);
  for (size_t i = 6; i < 10; ++i) EXPECT_EQ(y[i], kInf) << x[i];
  for (size_t i = 10; i < 16; ++i) EXPECT_TRUE(std::isnan(y[i]));
}

// Floats of every exponent with mantissas around all places where rounding decides.
std::vector<float> telling_floats() {
  std::vector<float> floats;
  for (uint32_t high = 0; high < 0x200; ++high) {  // sign and exponent
    for (uint32_t step = 0; step < 1024; ++step) {
      for (const uint32_t low : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) {
        floats.push_back(std::bit_cast<float>((high << 23) | (step << 13) | low));
      }
    }
  }
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65521) {
    floats.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  floats.resize((floats.size() + 15) / 16 * 16);
  return floats;
}

TEST_P(VecTest, StoresTo16BitsRoundAsHalfDoes) {
  const std::vector<float> x = telling_floats();
  std::vector<f16> half(x.size());
  std::vector<bf16> brain(x.size());
  vec_.to_f16(x.data(), half.data(), static_cast<int64_t>(x.size()));
  vec_.to_bf16(x.data(), brain.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(half[i].bits, to_f16(x[i]).bits) << std::bit_cast<uint32_t>(x[i]);
    ASSERT_EQ(brain[i].bits, to_bf16(x[i]).bits) << std::bit_cast<uint32_t>(x[i]);
  }
}

TEST_P(VecTest, LoadsOf16BitsAreThoseOfHalf) {
  std::vector<f16> half(65536);
  std::vector<bf16> brain(65536);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    half[bits].bits = brain[bits].bits = static_cast<uint16_t>(bits);
  }
  std::vector<float> from_half(65536), from_brain(65536);
  vec_.from_f16(half.data(), from_half.data(), 65536);
  vec_.from_bf16(brain.data(), from_brain.data(), 65536);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    ASSERT_EQ(std::bit_cast<uint32_t>(from_half[bits]),
              std::bit_cast<uint32_t>(to_float(half[bits])))
        << bits;
    ASSERT_EQ(std::bit_cast<uint32_t>(from_brain[bits]),
              std::bit_cast<uint32_t>(to_float(brain[bits])))
        << bits;
  }
}

TEST_P(VecTest, ReductionsFoldInHalves) {
  Rng rng(1);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> x(lanes_);
    for (float& v : x) v = rng.normal() * std::exp(rng.normal() * 5);
    EXPECT_EQ(vec_.reduce_max(x.data()), *std::max_element(x.begin(), x.end()));
    std::vector<float> folded = x;
    for (size_t width = lanes_ / 2; width > 0; width /= 2) {
      for (size_t i = 0; i < width; ++i) folded[i] += folded[i + width];
    }
    EXPECT_EQ(vec_.reduce_add(x.data()), folded[0]);
  }
}

TEST_P(VecTest, FmaMinMax) {
  Rng rng(2);
  std::vector<float> in(3 * lanes_), out(3 * lanes_);
  for (float& v : in) v = rng.normal();
  vec_.fma_min_max(in.data(), out.data());
  for (size_t i = 0; i < lanes_; ++i) {
    const float a = in[i], b = in[i + lanes_], c = in[i + 2 * lanes_];
    EXPECT_NEAR(out[i], double{a} * b + c, 3e-7 * (std::fabs(a * b) + std::fabs(c)));
    EXPECT_EQ(out[i + lanes_], std::min(a, b));
    EXPECT_EQ(out[i + 2 * lanes_], std::max(a, b));
  }
}

template <typename T, typename Partial>
void expect_partial(size_t lanes, Partial partial) {
  for (int count = 1; count < static_cast<int>(lanes); ++count) {
    const auto n = static_cast<size_t>(count);
    std::vector<T> x(n), y(n);  // no byte more: the address sanitizer watches the ends
    for (size_t i = 0; i < n; ++i) {
      const float value = static_cast<float>(i) + 0.5f;
      if constexpr (std::is_same_v<T, float>) x[i] = value;
      if constexpr (std::is_same_v<T, f16>) x[i] = to_f16(value);
      if constexpr (std::is_same_v<T, bf16>) x[i] = to_bf16(value);
    }
    std::vector<float> all(lanes);
    partial(x.data(), count, -7.0f, all.data(), y.data());
    for (size_t i = 0; i < lanes; ++i) {
      EXPECT_EQ(all[i], i < n ? static_cast<float>(i) + 0.5f : -7.0f) << count << ", " << i;
    }
    for (size_t i = 0; i < n; ++i) EXPECT_EQ(to_float(y[i]), to_float(x[i]));
  }
}

TEST_P(VecTest, PartialLoadsAndStoresTouchTheirElementsOnly) {
  expect_partial<float>(lanes_, vec_.partial_f32);
  expect_partial<f16>(lanes_, vec_.partial_f16);
  expect_partial<bf16>(lanes_, vec_.partial_bf16);
}

}  // namespace
}  // namespace spb
