#include "spike/weights/weight_codes.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "core/test_errors.h"
#include "core/test_tensors.h"

namespace spb::spike {
namespace {

using spb::test::expect_error;

using spb::test::isa_levels;
using spb::test::IsaScope;
using spb::test::same_bits;
using spb::test::StridedMatrix;

int32_t code_at(const WeightCodes& w, int64_t n, int64_t c) {
  int32_t code = w.codes.view().row_as<int8_t>(n)[c];
  for (const CodeExcess& e : w.residual) {
    if (e.row == n && e.column == c) code += e.excess;
  }
  return code;
}

float scale_at(const WeightCodes& w, int64_t n, int64_t c) {
  return w.scales.view().row_as<float>(n)[c / kScaleGroup];
}

// The error that search_scales makes smallest, of one group, in double.
double error_of(const StridedMatrix& w, int64_t n, int64_t group, float scale,
                const float* importance) {
  double sum = 0;
  const int64_t end = std::min((group + 1) * kScaleGroup, w.view().shape()[1]);
  for (int64_t c = group * kScaleGroup; c < end; ++c) {
    const double code =
        std::clamp(static_cast<double>(std::nearbyint(w.at(n, c) / scale)), -127.0, 127.0);
    const double error = static_cast<double>(w.at(n, c)) - code * static_cast<double>(scale);
    sum += static_cast<double>(importance[c]) * error * error;
  }
  return sum;
}

TEST(WeightCodes, LargestWeightOfAGroupIs127) {
  Rng rng(1);
  Context context(2);
  StridedMatrix w(9, 300, 5);
  w.fill_normal(rng, 0.05f);
  const WeightCodes q = quantize_largest(context, w.view());
  EXPECT_EQ(q.scales.shape(), (Shape{9, 3}));
  EXPECT_TRUE(q.residual.empty());
  for (int64_t n = 0; n < 9; ++n) {
    int32_t largest[3] = {};
    for (int64_t c = 0; c < 300; ++c) {
      const float scale = scale_at(q, n, c);
      largest[c / 128] = std::max(largest[c / 128], std::abs(code_at(q, n, c)));
      EXPECT_LE(std::fabs(w.at(n, c) - static_cast<float>(code_at(q, n, c)) * scale),
                0.5001f * scale);
    }
    for (const int32_t code : largest) EXPECT_EQ(code, 127);
  }
}

TEST(WeightCodes, SearchFindsTheLeastError) {
  Rng rng(2);
  Context context(2);
  StridedMatrix w(12, 320);
  w.fill_normal(rng, 0.02f);
  Tensor importance(DType::kF32, Shape{320});
  for (int64_t c = 0; c < 320; ++c) importance.as<float>()[c] = std::exp(3 * rng.normal());
  const float* h = importance.as<float>();
  const WeightCodes plain = quantize_largest(context, w.view());
  const WeightCodes found = search_scales(context, w.view(), importance);
  double gained = 0;
  for (int64_t n = 0; n < 12; ++n) {
    for (int64_t g = 0; g < 3; ++g) {
      const float largest = scale_at(plain, n, g * kScaleGroup);
      double least = HUGE_VAL;
      for (int percent = 65; percent <= 100; ++percent) {
        const float scale = largest * (static_cast<float>(percent) / 100.0f);
        least = std::min(least, error_of(w, n, g, scale, h));
      }
      const double error = error_of(w, n, g, scale_at(found, n, g * kScaleGroup), h);
      EXPECT_LE(error, least * (1 + 1e-5));
      gained += error_of(w, n, g, largest, h) / error;
    }
  }
  EXPECT_GT(gained / 36, 1.5);  // on average, for channels of such unequal importance
  for (int64_t c = 0; c < 320; ++c) {
    const float code = std::nearbyint(w.at(3, c) / scale_at(found, 3, c));
    EXPECT_EQ(static_cast<float>(code_at(found, 3, c)), std::clamp(code, -127.0f, 127.0f));
  }
}

TEST(WeightCodes, SearchKeepsTheLargerScaleOfTwoThatDoEquallyWell) {
  Rng rng(3);
  Context context(1);
  StridedMatrix w(3, 128);
  w.fill_normal(rng);
  const Tensor unimportant(DType::kF32, Shape{128});
  EXPECT_TRUE(same_bits(search_scales(context, w.view(), unimportant).scales.view(),
                        quantize_largest(context, w.view()).scales.view()));
}

TEST(WeightCodes, SameBitsEverywhere) {
  Rng rng(4);
  StridedMatrix w(37, 200);
  w.fill_normal(rng, 0.1f);
  Context one(1);
  const WeightCodes want = search_scales(one, w.view());
  for (const Isa level : isa_levels()) {
    const IsaScope scope(level);
    for (const int threads : {1, 2, 3}) {
      Context context(threads);
      const WeightCodes got = search_scales(context, w.view());
      EXPECT_TRUE(same_bits(got.codes.view(), want.codes.view())) << name(level);
      EXPECT_TRUE(same_bits(got.scales.view(), want.scales.view())) << name(level);
    }
  }
}

TEST(WeightCodes, ZerosAndTinyWeights) {
  Context context(1);
  const StridedMatrix w(1, 256);
  std::fill_n(w.row(0), 256, 0.0f);
  w.row(0)[130] = 1e-42f;
  for (const WeightCodes& q :
       {quantize_largest(context, w.view()), search_scales(context, w.view())}) {
    EXPECT_EQ(scale_at(q, 0, 0), 1.0f);
    EXPECT_GT(scale_at(q, 0, 130), 0.0f);
    for (int64_t c = 0; c < 256; ++c) EXPECT_EQ(code_at(q, 0, c), 0);
  }
}

TEST(WeightCodes, SplitKeepsCodesBeyondInt8) {
  Rng rng(5);
  Context context(3);
  StridedMatrix w(50, 256);
  w.fill_normal(rng, 1.0f);
  StridedMatrix scales(50, 2);
  for (int64_t n = 0; n < 50; ++n) {
    for (int64_t g = 0; g < 2; ++g) scales.row(n)[g] = rng.uniform(0.005f, 0.03f);
  }
  w.row(7)[3] = scales.at(7, 0) * 127.5f;    // rounds to the even 128
  w.row(7)[4] = scales.at(7, 0) * -128.5f;   // to -128, within int8
  w.row(7)[5] = scales.at(7, 0) * 16777216;  // the largest code
  w.row(7)[6] = scales.at(7, 0) * 2.5f;
  const WeightCodes q = split_codes(context, w.view(), scales.view());
  int64_t outside = 0;
  for (int64_t n = 0; n < 50; ++n) {
    for (int64_t c = 0; c < 256; ++c) {
      const auto want = static_cast<int32_t>(std::nearbyint(w.at(n, c) / scale_at(q, n, c)));
      ASSERT_EQ(code_at(q, n, c), want);
      if (want < -128 || want > 127) ++outside;
    }
  }
  EXPECT_EQ(code_at(q, 7, 5), kMaxCode);
  EXPECT_GT(outside, 10);
  EXPECT_EQ(static_cast<int64_t>(q.residual.size()), outside);
  EXPECT_DOUBLE_EQ(q.residual_share(), static_cast<double>(outside) / (50 * 256));
  const SpikeWeight prepared = prepare_spike_weight(context, q.source());
  EXPECT_EQ(prepared.residual_codes(), outside);
}

// Weights and scales in bf16 give other codes: the quotient has eight significant bits.
TEST(WeightCodes, SplitRoundsQuotientsAsBf16Does) {
  Context context(1);
  const StridedMatrix w(1, 128);
  std::fill_n(w.row(0), 128, 0.0f);
  const StridedMatrix scales(1, 1);
  scales.row(0)[0] = 1.0f;
  w.row(0)[0] = 100.25f;  // to the even half 100.0 or 100.5: 100.0, since 100.25 is a tie
  w.row(0)[1] = 100.4f;   // bf16 100.5, then to the even 100
  w.row(0)[2] = 101.3f;   // bf16 101.5, then to the even 102
  w.row(0)[3] = 201.6f;   // bf16 202
  const WeightCodes exact = split_codes(context, w.view(), scales.view());
  const WeightCodes coarse = split_codes(context, w.view(), scales.view(), true);
  const int32_t want_exact[] = {100, 100, 101, 202};
  const int32_t want_coarse[] = {100, 100, 102, 202};
  for (int64_t c = 0; c < 4; ++c) {
    EXPECT_EQ(code_at(exact, 0, c), want_exact[c]);
    EXPECT_EQ(code_at(coarse, 0, c), want_coarse[c]);
  }
}

TEST(WeightCodes, RefusesWhatHasNoCodes) {
  Context context(2);
  Rng rng(6);
  StridedMatrix w(2, 256);
  w.fill_normal(rng);
  StridedMatrix scales(2, 2);
  scales.fill_normal(rng);
  for (int64_t n = 0; n < 2; ++n) std::fill_n(scales.row(n), 2, 0.1f);
  expect_error(ErrorKind::kUsage, "scales: expected f32 [2, 2]",
               [&] { split_codes(context, w.view(), w.view()); });
  expect_error(ErrorKind::kUsage, "w: expected a matrix", [&] { quantize_largest(context, {}); });
  expect_error(ErrorKind::kUsage, "importance: expected f32 [256]",
               [&] { search_scales(context, w.view(), scales.view()); });
  for (const float bad : {0.0f, -1.0f, HUGE_VALF, std::nanf("")}) {
    scales.row(1)[1] = bad;
    expect_error(ErrorKind::kData, "row 1, group 1",
                 [&] { split_codes(context, w.view(), scales.view()); });
  }
  scales.row(1)[1] = 1e-30f;
  expect_error(ErrorKind::kData, "|code| up to",
               [&] { split_codes(context, w.view(), scales.view()); });
  Tensor importance(DType::kF32, Shape{256});
  importance.as<float>()[9] = -1;
  expect_error(ErrorKind::kData, "channel 9",
               [&] { search_scales(context, w.view(), importance); });
  w.row(1)[200] = HUGE_VALF;
  for (const auto quantize : {+[](Context&c, ConstTensorView v) { quantize_largest(c, v); },
                              +[](Context&c, ConstTensorView v) { search_scales(c, v); }}) {
    expect_error(ErrorKind::kData, "row 1, column 200", [&] { quantize(context, w.view()); });
  }
  scales.row(1)[1] = 0.1f;
  expect_error(ErrorKind::kData, "row 1, column 200",
               [&] { split_codes(context, w.view(), scales.view()); });
}

}  // namespace
}  // namespace spb::spike
