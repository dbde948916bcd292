#include "ops/softmax_attention/softmax_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ops/softmax_attention/softmax_attention_test_problem.h"

namespace spb::ops {
namespace {

using test::contents;
using test::largest_difference;

constexpr float kNan = test::kPoison;

class EveryIsa : public test::EveryIsa {};

INSTANTIATE_TEST_SUITE_P(SoftmaxAttention, EveryIsa, testing::ValuesIn(test::isa_levels()),
                         test::isa_name);

TEST_P(EveryIsa, MatchesReferenceOnRandomShapes) {
  Context context(2);
  Rng rng(7);
  const int64_t dims[] = {2, 6, 16, 34, 64, 80, 100, 128};
  const int64_t groups[] = {1, 2, 3, 7, 9};
  const int64_t tokens[] = {1, 1, 2, 5, 31, 32, 33, 70, 130};
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};
  for (int i = 0; i < 60; ++i) {
    Case c;
    c.tokens = tokens[rng.below(9)];
    c.kv_heads = 1 + rng.below(3);
    c.group = groups[rng.below(5)];
    c.head_dim = dims[rng.below(8)];
    c.first_position = rng.below(2) == 0 ? 0 : rng.below(300);
    c.window_size = rng.below(2) == 0 ? 0 : 1 + rng.below(200);
    c.spare = rng.below(2) == 0 ? 0 : rng.below(70);
    c.dtype = dtypes[rng.below(4)];
    expect_matches_reference(c, 100 + i, context);
  }
}

TEST_P(EveryIsa, LongContextsAreMergedFromPieces) {
  Context context(2);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
    for (const int64_t position : {255, 513, 1500}) {
      expect_matches_reference({1, 2, 3, 64, position, 0, 5, dtype}, 3, context);
      expect_matches_reference({3, 1, 2, 128, position, 700, 0, dtype}, 4, context);
    }
  }
}

TEST_P(EveryIsa, PrefillSpansSeveralPackedSpans) {
  Context context(2);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
    expect_matches_reference({1100, 1, 1, 16, 500, 0, 0, dtype}, 5, context);
    expect_matches_reference({1100, 1, 2, 16, 900, 90, 0, dtype}, 6, context);
  }
}

// The keys and values of the first `total` positions of a cache that no position has left.
std::pair<Tensor, Tensor> read_back(const Cache& cache, int64_t total) {
  const Shape& shape = cache.keys.shape();
  Tensor k(DType::kF32, Shape{total, shape[0], shape[2]});
  Tensor v(DType::kF32, k.shape());
  for (int64_t row = 0; row < total * shape[0]; ++row) {
    const int64_t slot = row % shape[0] * shape[1] + row / shape[0];
    for (int64_t d = 0; d < shape[2]; ++d) {
      const int64_t from = slot * shape[2] + d;
      const bool codes = cache.key_scales.defined();
      k.as<float>()[row * shape[2] + d] =
          codes ? cache.keys.as<int8_t>()[from] * cache.key_scales.as<float>()[slot]
                : cache.keys.as<float>()[from];
      v.as<float>()[row * shape[2] + d] =
          codes ? cache.values.as<int8_t>()[from] * cache.value_scales.as<float>()[slot]
                : cache.values.as<float>()[from];
    }
  }
  return {std::move(k), std::move(v)};
}

// Around the window the ring wraps and the first keys fall out of sight; sinks stay.
TEST_P(EveryIsa, PrefillThenDecodeEqualsPrefillOfAll) {
  Context context(2);
  const int64_t window = 50;
  for (const int64_t total : {window - 1, window, window + 1, window + 2, 2 * window + 7}) {
    for (const int64_t prefix : {int64_t{1}, int64_t{33}, total - 1}) {
      for (const DType dtype : {DType::kF32, DType::kI8}) {
        const Case all{total, 2, 3, 32, 0, window, 0, dtype, total % 3 * 5};
        Problem problem(all, 11, context);
        const std::vector<float> expected = run(problem, context);
        // The same keys and values again, appended as they come to a ring of the least capacity.
        auto [k, v] = read_back(problem.cache, total);
        Cache ring(dtype, Shape{2, std::min(total, window + prefix - 1), 32});
        fill_value(problem.o, kNan);
        const auto step = [&, &k = k, &v = v](int64_t first, int64_t count) {
          const auto part = [&](Tensor& tensor, int64_t heads) {
            return TensorView(tensor.as<float>() + first * heads * 32, Shape{count, heads, 32});
          };
          ring.append(context, part(k, 2), part(v, 2), first);
          SoftmaxAttentionArgs args = problem.args();
          ring.show(args);
          args.q = part(problem.q, 6);
          args.o = part(problem.o, 6);
          args.first_position = first;
          softmax_attention(context, args);
        };
        step(0, prefix);
        for (int64_t i = prefix; i < total; ++i) step(i, 1);
        EXPECT_LE(largest_difference(contents(problem.o), expected), tolerance(all))
            << describe(all) << " prefix " << prefix;
      }
    }
  }
}

// A poisoned position spoils the queries that see it and no other one.
TEST_P(EveryIsa, OnlyVisibleKeysAreUsed) {
  Context context(2);
  Rng rng(5);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t tokens : {1, 4, 40, 100}) {
      for (const int64_t window : {0, 20}) {
        const Case c{tokens, 1, 3, 32, 90, window, 8, dtype};
        Problem problem(c, 21, context);
        const int64_t visible = window > 0 ? window + tokens - 1 : c.context();
        const int64_t poisoned = c.context() - 1 - rng.below(visible);
        Tensor row(DType::kF32, Shape{1, 1, 32});
        fill_value(row, kNan);
        problem.cache.append(context, row, row, poisoned);
        const std::vector<float> output = run(problem, context);
        for (int64_t i = 0; i < tokens * 3; ++i) {
          const int64_t position = 90 + i / 3;
          const bool sees = poisoned <= position && (window == 0 || poisoned > position - window);
          EXPECT_EQ(std::isnan(output[i * 32]), sees) << describe(c) << " token " << i / 3;
        }
      }
    }
  }
}

TEST_P(EveryIsa, BitsDoNotDependOnThreads) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
    for (const int64_t tokens : {1, 3, 70}) {
      Context one(1);
      Problem problem({tokens, 3, 3, 64, 600, 0, 0, dtype}, 31, one);
      const std::vector<float> expected = run(problem, one);
      for (const int threads : {2, 3}) {
        Context many(threads);
        EXPECT_EQ(run(problem, many), expected) << threads << " threads, " << tokens << " tokens";
      }
    }
  }
}

TEST_P(EveryIsa, OutputMayBeTheQueries) {
  Context context(2);
  for (const int64_t tokens : {1, 5, 40}) {
    Problem problem({tokens, 2, 2, 48, 13, 0, 0, DType::kF16}, 41, context);
    const std::vector<float> expected = run(problem, context);
    SoftmaxAttentionArgs args = problem.args();
    args.o = problem.q;
    softmax_attention(context, args);
    EXPECT_EQ(contents(problem.q), expected);
  }
}

TEST_P(EveryIsa, LargeScoresDoNotOverflow) {
  Context context(1);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
    for (const int64_t tokens : {1, 40}) {
      Problem problem({tokens, 1, 2, 64, 70, 0, 0, dtype}, 51, context);
      for (int64_t i = 0; i < problem.q.shape().elements(); ++i) problem.q.as<float>()[i] *= 3e3f;
      for (const float x : run(problem, context)) EXPECT_TRUE(std::isfinite(x));
    }
  }
}

TEST_P(EveryIsa, AppendRoundsLikeTheScalarConversions) {
  Context context(2);
  Rng rng(61);
  for (const int64_t head_dim : {2, 30, 64}) {
    Tensor k(DType::kF32, Shape{3, 2, head_dim});
    Tensor v(DType::kF32, k.shape());
    for (int64_t i = 0; i < k.shape().elements(); ++i) {
      k.as<float>()[i] = rng.normal() * std::pow(10.0f, rng.uniform(-8, 6));
      v.as<float>()[i] = rng.normal();
    }
    Tensor half_keys(DType::kF16, Shape{2, 5, head_dim}),
        half_values(DType::kF16, Shape{2, 5, head_dim});
    Tensor bf_keys(DType::kBF16, half_keys.shape()), bf_values(DType::kBF16, half_keys.shape());
    append_to_cache(context, {k, v, half_keys, half_values, 3});
    append_to_cache(context, {k, v, bf_keys, bf_values, 3});
    for (int64_t i = 0; i < 3 * 2 * head_dim; ++i) {
      const int64_t token = i / (2 * head_dim);
      const int64_t slot = (i / head_dim % 2 * 5 + (3 + token) % 5) * head_dim + i % head_dim;
      EXPECT_EQ(half_keys.as<f16>()[slot].bits, to_f16(k.as<float>()[i]).bits) << k.as<float>()[i];
      EXPECT_EQ(half_values.as<f16>()[slot].bits, to_f16(v.as<float>()[i]).bits);
      EXPECT_EQ(bf_keys.as<bf16>()[slot].bits, to_bf16(k.as<float>()[i]).bits);
      EXPECT_EQ(bf_values.as<bf16>()[slot].bits, to_bf16(v.as<float>()[i]).bits);
    }
  }
}

class Arguments : public testing::Test {
 protected:
  Context context_{1};
  Tensor q_{DType::kF32, Shape{2, 4, 8}};
  Tensor keys_{DType::kF16, Shape{2, 9, 8}};
  Tensor values_{DType::kF16, Shape{2, 9, 8}};
  Tensor o_{DType::kF32, Shape{2, 4, 8}};
  SoftmaxAttentionArgs args_{q_, keys_, values_, o_, 3, 0, 1.0f};

  void expect_error(const std::string& part) {
    test::expect_usage_error([&] { softmax_attention(context_, args_); }, part);
  }
};

TEST_F(Arguments, GoodOnesAreAccepted) { softmax_attention(context_, args_); }

TEST_F(Arguments, AbsentTensor) {
  args_.q = {};
  expect_error("q: expected [tokens, query heads, head_dim]");
}

TEST_F(Arguments, HeadsThatDoNotDivide) {
  Tensor q(DType::kF32, Shape{2, 3, 8});
  args_.q = q;
  expect_error("multiple of 2 kv heads, got 3");
}

TEST_F(Arguments, OtherHeadDim) {
  Tensor q(DType::kF32, Shape{2, 4, 16});
  args_.q = q;
  expect_error("keys: expected [kv heads, capacity, 16], got [2, 9, 8]");
}

TEST_F(Arguments, OtherShapeOrDtype) {
  Tensor values(DType::kBF16, values_.shape());
  args_.values = values;
  expect_error("values: expected f16 [2, 9, 8], got bf16");
  args_.values = values_;
  Tensor o(DType::kF32, Shape{1, 4, 8});
  args_.o = o;
  expect_error("o: expected f32 [2, 4, 8], got f32 [1, 4, 8]");
}

TEST_F(Arguments, CacheOfIntegers) {
  Tensor keys(DType::kI32, keys_.shape());
  args_.keys = keys;
  expect_error("keys: expected f32, f16, bf16 or i8, got i32");
}

TEST_F(Arguments, RingTooSmall) {
  args_.first_position = 8;
  expect_error("capacity >= 10");
  args_.window_size = 9;
  expect_error("capacity >= 10");
  args_.window_size = 8;
  softmax_attention(context_, args_);
}

TEST_F(Arguments, BadNumbers) {
  args_.first_position = -1;
  expect_error("first_position: expected 0 to");
  args_.first_position = std::numeric_limits<int64_t>::max();
  expect_error("first_position: expected 0 to");
  args_.first_position = 0;
  args_.window_size = -1;
  expect_error("window_size: expected 0 (none) or more, got -1");
  args_.window_size = std::numeric_limits<int64_t>::max();
  softmax_attention(context_, args_);
  args_.scale = kNan;
  expect_error("scale: expected a finite number");
}

TEST_F(Arguments, NoTokensIsNoWork) {
  Tensor none(DType::kF32, Shape{0, 4, 8});
  args_.q = none;
  args_.o = none;
  softmax_attention(context_, args_);
}

TEST_F(Arguments, AppendChecks) {
  Tensor k(DType::kF32, Shape{10, 2, 8});
  EXPECT_THROW(append_to_cache(context_, {k, k, keys_, values_, 0}), Error);  // more than it holds
  Tensor few(DType::kF32, Shape{1, 2, 8});
  EXPECT_THROW(append_to_cache(context_, {few, few, keys_, values_, -1}), Error);
  EXPECT_THROW(append_to_cache(context_, {few, k, keys_, values_, 0}), Error);
  EXPECT_THROW(append_to_cache(context_, {few, few, keys_, keys_, 0}), Error);
  append_to_cache(context_, {few, few, keys_, values_, 0});
}

}  // namespace
}  // namespace spb::ops
