// Caches of 8-bit codes: what appending makes of a row, and that attention reads the same numbers
// as from floats. The other laws are those of every dtype, in the other tests of this folder.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ops/softmax_attention/softmax_attention_test_problem.h"

namespace spb::ops {
namespace {

using test::largest_difference;

class Int8Cache : public test::EveryIsa {
 protected:
  Context context_{2};
};

INSTANTIATE_TEST_SUITE_P(SoftmaxAttention, Int8Cache, testing::ValuesIn(test::isa_levels()),
                         test::isa_name);

// A cache of f32 that holds the numbers of a cache of codes.
Cache floats_of(const Cache& codes) {
  Cache out(DType::kF32, codes.keys.shape());
  const int64_t head_dim = codes.keys.shape()[2];
  for (int64_t i = 0; i < codes.keys.shape().elements(); ++i) {
    const int64_t row = i / head_dim;
    out.keys.as<float>()[i] = codes.keys.as<int8_t>()[i] * codes.key_scales.as<float>()[row];
    out.values.as<float>()[i] = codes.values.as<int8_t>()[i] * codes.value_scales.as<float>()[row];
  }
  return out;
}

// Where keys and values are unpacked into floats, the bits are those of a cache of floats; single
// tokens and tiles multiply by the scales later.
void expect_same_as_floats(const Case& c, Context& context) {
  Problem problem(c, 7, context);
  const std::vector<float> got = run(problem, context);
  const Cache cache = floats_of(problem.cache);
  const Cache sinks = floats_of(problem.sinks);
  SoftmaxAttentionArgs args;
  args.q = problem.q;
  args.o = problem.o;
  args.first_position = c.first_position;
  args.window_size = c.window_size;
  args.scale = problem.args().scale;
  cache.show(args);
  sinks.show_as_sinks(args);
  softmax_attention(context, args);
  const std::vector<float> expected = test::contents(problem.o);
  if (c.tokens > 16 && (c.tokens < 32 || isa() != Isa::kAmx)) {
    EXPECT_EQ(got, expected) << describe(c);
  } else {
    EXPECT_LE(largest_difference(got, expected), tolerance(c)) << describe(c);
  }
}

TEST_P(Int8Cache, IsACacheOfTheSameNumbersAsFloats) {
  for (const int64_t tokens : {1, 2, 17, 31, 32, 100}) {
    for (const int64_t head_dim : {1, 15, 64, 96, 128, 131}) {
      expect_same_as_floats({tokens, 2, 1, head_dim, 170, 0, 3, DType::kI8, 5}, context_);
      expect_same_as_floats({tokens, 2, 1, head_dim, 170, 60, 3, DType::kI8, 5}, context_);
    }
  }
}

// Rows whose scales lie at both ends of their range.
TEST_P(Int8Cache, KeepsRowsOfAnySize) {
  Rng rng(3);
  for (const int64_t tokens : {1, 20, 40}) {
    const Case c{tokens, 1, 2, 48, 80, 0, 0, DType::kI8, 3};
    Problem problem(c, 5, context_);
    Tensor k(DType::kF32, Shape{1, 1, 48}), v(DType::kF32, k.shape());
    for (int64_t position = 0; position < 80; ++position) {
      fill_normal(k, rng, std::pow(10.0f, rng.uniform(-8, 0)));
      fill_normal(v, rng, std::pow(10.0f, rng.uniform(-8, 8)));
      problem.cache.append(context_, k, v, position);
    }
    const std::vector<float> expected = run_reference(problem);
    const float largest = 127.0f * *std::max_element(problem.cache.value_scales.as<float>(),
                                                     problem.cache.value_scales.as<float>() + 80);
    EXPECT_LE(largest_difference(run(problem, context_), expected), largest * tolerance(c) / 4);
  }
}

TEST_P(Int8Cache, AppendRoundsEachHeadToItsOwnScale) {
  Rng rng(61);
  for (const int64_t head_dim : {1, 2, 30, 64, 67}) {
    Tensor k(DType::kF32, Shape{3, 2, head_dim}), v(DType::kF32, k.shape());
    for (Tensor* x : {&k, &v}) {
      for (int64_t i = 0; i < x->shape().elements(); ++i) {
        x->as<float>()[i] = rng.normal() * std::pow(10.0f, rng.uniform(-8, 8));
      }
    }
    std::fill_n(k.as<float>(), head_dim, 0.0f);
    Cache cache(DType::kI8, Shape{2, 5, head_dim});
    cache.append(context_, k, v, 3);
    for (int64_t row = 0; row < 6; ++row) {
      const int64_t slot = row % 2 * 5 + (3 + row / 2) % 5;
      const auto expect_row = [&](const Tensor& x, const Tensor& codes, const Tensor& scales) {
        const float* numbers = x.view().row_as<float>(row);
        float largest = 0;
        for (int64_t d = 0; d < head_dim; ++d) largest = std::max(largest, std::fabs(numbers[d]));
        const float scale = std::clamp(largest / 127.0f, 1e-5f, 1e4f);
        EXPECT_EQ(scales.as<float>()[slot], scale);
        for (int64_t d = 0; d < head_dim; ++d) {
          const float code = std::clamp(std::nearbyint(numbers[d] / scale), -128.0f, 127.0f);
          EXPECT_EQ(codes.view().row_as<int8_t>(slot)[d], code) << numbers[d] << " / " << scale;
        }
      };
      expect_row(k, cache.keys, cache.key_scales);
      expect_row(v, cache.values, cache.value_scales);
    }
  }
}

TEST_P(Int8Cache, TiesGoToEvenCodes) {
  Tensor k(DType::kF32, Shape{1, 1, 6}), v(DType::kF32, k.shape());
  const float numbers[] = {127, 2.5f, -2.5f, 3.5f, -0.5f, 126.5f};
  const int8_t expected[] = {127, 2, -2, 4, 0, 126};
  std::copy_n(numbers, 6, k.as<float>());
  std::copy_n(numbers, 6, v.as<float>());
  Cache cache(DType::kI8, Shape{1, 1, 6});
  cache.append(context_, k, v, 0);
  EXPECT_TRUE(std::equal(expected, expected + 6, cache.keys.as<int8_t>()));
  EXPECT_TRUE(std::equal(expected, expected + 6, cache.values.as<int8_t>()));
}

template <typename Call>
void expect_data_error(Call&& call, const std::string& part) {
  test::expect_error(ErrorKind::kData, part, call);
}

// Scales that no query sees are never read; one that is seen must make sense.
TEST_P(Int8Cache, VisibleScalesAreChecked) {
  for (const int64_t tokens : {1, 20, 40}) {
    const Case c{tokens, 2, 1, 32, 90, 20, 8, DType::kI8, 4};
    Problem problem(c, 21, context_);
    const std::vector<float> expected = run(problem, context_);
    const int64_t capacity = c.capacity();
    float* scales = problem.cache.key_scales.as<float>();
    for (int64_t position = c.context() - capacity; position < c.context(); ++position) {
      const bool seen = position > 90 - 20;
      float& scale = scales[capacity + position % capacity];
      const float good = std::exchange(scale, test::kPoison);
      if (seen) {
        expect_data_error([&] { run(problem, context_); },
                          fmt::format("key_scales: head 1, slot {}: expected 1e-05 to 10000, "
                                      "got nan",
                                      position % capacity));
        EXPECT_TRUE(std::isnan(problem.o.as<float>()[0])) << "nothing should be written";
      } else {
        EXPECT_EQ(run(problem, context_), expected);
      }
      scale = good;
    }
    EXPECT_EQ(run(problem, context_), expected);
  }
}

TEST_P(Int8Cache, ScalesOutOfRangeAreRefused) {
  Problem problem({1, 2, 1, 8, 9, 0, 0, DType::kI8, 3}, 1, context_);
  const auto refuse = [&](Tensor& scales, int64_t index, const std::string& part) {
    for (const float bad : {0.0f, -1.0f, 2e4f, 1e-6f, test::kPoison, HUGE_VALF, -HUGE_VALF}) {
      const float good = std::exchange(scales.as<float>()[index], bad);
      expect_data_error([&] { run(problem, context_); }, part);
      scales.as<float>()[index] = good;
    }
  };
  refuse(problem.cache.key_scales, 4, "softmax_attention: key_scales: head 0, slot 4: expected");
  refuse(problem.cache.value_scales, 19, "value_scales: head 1, slot 9: expected");
  refuse(problem.sinks.key_scales, 5, "sink_key_scales: head 1, slot 2: expected");
  refuse(problem.sinks.value_scales, 0, "sink_value_scales: head 0, slot 0: expected");
}

TEST_P(Int8Cache, NumbersThatAreNotFiniteAreRefused) {
  Cache cache(DType::kI8, Shape{2, 4, 8});
  Tensor k(DType::kF32, Shape{3, 2, 8}), v(DType::kF32, k.shape());
  for (const float bad : {test::kPoison, HUGE_VALF, -HUGE_VALF}) {
    fill_value(k, 1.0f);
    fill_value(v, 1.0f);
    v.as<float>()[3 * 8 + 5] = bad;
    expect_data_error([&] { cache.append(context_, k, v, 0); },
                      "append_to_cache: v: row 3, column 5: expected a finite number");
    k.as<float>()[2] = bad;
    v.as<float>()[3 * 8 + 5] = 0;
    expect_data_error([&] { cache.append(context_, k, v, 0); },
                      "append_to_cache: k: row 0, column 2: expected a finite number");
  }
}

class Int8Arguments : public testing::Test {
 protected:
  Context context_{1};
  Problem problem_{{2, 2, 2, 8, 3, 0, 0, DType::kI8, 5}, 1, context_};
  SoftmaxAttentionArgs args_ = problem_.args();

  void expect_error(const std::string& part) {
    test::expect_usage_error([&] { softmax_attention(context_, args_); }, part);
    args_ = problem_.args();
  }
};

TEST_F(Int8Arguments, MissingScales) {
  softmax_attention(context_, args_);
  args_.key_scales = {};
  expect_error("key_scales: expected f32 [2, 5]");
  args_.value_scales = {};
  expect_error("value_scales: expected f32 [2, 5]");
  args_.sink_key_scales = {};
  expect_error("sink_key_scales: expected f32 [2, 5]");
  args_.sink_value_scales = {};
  expect_error("sink_value_scales: expected f32 [2, 5]");
}

TEST_F(Int8Arguments, ScalesOfOtherShapeDtypeOrStride) {
  Tensor flat(DType::kF32, Shape{10});
  args_.key_scales = flat;
  expect_error("key_scales: expected f32 [2, 5], got f32 [10]");
  Tensor half(DType::kF16, Shape{2, 5});
  args_.sink_value_scales = half;
  expect_error("sink_value_scales: expected f32 [2, 5], got f16 [2, 5]");
  Tensor gaps(DType::kF32, Shape{2, 6});
  args_.value_scales = ConstTensorView(gaps.view().data(), DType::kF32, Shape{2, 5}, 24);
  expect_error("value_scales: expected contiguous rows");
}

TEST_F(Int8Arguments, ScalesBesideFloats) {
  Problem floats({2, 2, 2, 8, 3, 0, 0, DType::kF16, 5}, 1, context_);
  const Tensor& scales = problem_.cache.key_scales;
  args_ = floats.args();
  args_.key_scales = scales;
  expect_error("key_scales: expected none for a cache of f16, got [2, 5]");
  args_ = floats.args();
  args_.sink_value_scales = scales;
  expect_error("sink_value_scales: expected none for a cache of f16, got [2, 5]");
  args_.key_scales = problem_.cache.key_scales;
  args_.sink_keys = floats.sinks.keys;
  expect_error("sink_keys: expected i8 [2, 5, 8], got f16");
}

TEST_F(Int8Arguments, ScalesInsideTheOutput) {
  const TensorView inside(args_.o.as<float>(), Shape{2, 5});
  args_.key_scales = inside;
  expect_error("key_scales");
  args_.value_scales = inside;
  expect_error("value_scales");
  args_.sink_key_scales = inside;
  expect_error("sink_key_scales");
  args_.sink_value_scales = inside;
  expect_error("sink_value_scales");
}

TEST_F(Int8Arguments, AppendChecks) {
  Cache& cache = problem_.cache;
  Tensor row(DType::kF32, Shape{1, 2, 8});
  AppendToCacheArgs args{
      row, row, cache.keys, cache.values, 0, cache.key_scales, cache.value_scales};
  append_to_cache(context_, args);
  const auto refuse = [&](const std::string& part) {
    test::expect_usage_error([&] { append_to_cache(context_, args); }, part);
    args = {row, row, cache.keys, cache.values, 0, cache.key_scales, cache.value_scales};
  };
  args.key_scales = {};
  refuse("append_to_cache: key_scales: expected f32 [2, 5]");
  args.value_scales = {};
  refuse("append_to_cache: value_scales: expected f32 [2, 5]");
  args.value_scales = args.key_scales;
  refuse("key_scales");
  args.key_scales = TensorView(row.as<float>(), Shape{2, 5});
  refuse("k");
  Tensor halves(DType::kF16, cache.keys.shape()), other(DType::kF16, cache.keys.shape());
  args.keys = halves;
  args.values = other;
  refuse("key_scales: expected none for a cache of f16, got [2, 5]");
}

}  // namespace
}  // namespace spb::ops
