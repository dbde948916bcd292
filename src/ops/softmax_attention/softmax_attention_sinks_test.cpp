#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/softmax_attention/softmax_attention_test_problem.h"

namespace spb::ops {
namespace {

using test::contents;
using test::largest_difference;

class AttentionSinks : public test::EveryIsa {
 protected:
  Context context_{2};
};

INSTANTIATE_TEST_SUITE_P(SoftmaxAttention, AttentionSinks, testing::ValuesIn(test::isa_levels()),
                         test::isa_name);

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};

TEST_P(AttentionSinks, MatchReferenceOnRandomShapes) {
  Rng rng(7);
  const int64_t dims[] = {1, 33, 64, 127, 128};
  const int64_t groups[] = {1, 2, 7};
  const int64_t tokens[] = {1, 1, 2, 5, 31, 32, 33, 70, 130};
  const int64_t sinks[] = {1, 3, 64, 128, 130};
  for (int i = 0; i < 60; ++i) {
    Case c;
    c.tokens = tokens[rng.below(9)];
    c.kv_heads = 1 + rng.below(3);
    c.group = groups[rng.below(3)];
    c.head_dim = dims[rng.below(5)];
    c.window_size = rng.below(3) == 0 ? 0 : 1 + rng.below(150);
    // A window goes around its ring several times.
    c.first_position = rng.below(3) == 0 ? 0 : rng.below(c.window_size > 0 ? 1000 : 300);
    c.spare = rng.below(2) == 0 ? 0 : rng.below(70);
    c.dtype = kDTypes[rng.below(4)];
    c.sinks = sinks[rng.below(5)];
    c.only_sinks = rng.below(4) == 0;
    if (c.only_sinks) c.first_position = c.window_size = 0;
    expect_matches_reference(c, 100 + i, context_);
  }
}

// More than are packed at once, or fit into one piece of work.
TEST_P(AttentionSinks, MayBeMany) {
  for (const DType dtype : kDTypes) {
    for (const int64_t tokens : {1, 20, 40}) {
      for (const bool only : {false, true}) {
        const int64_t position = only ? 0 : 700;
        const int64_t window = only ? 0 : 50;
        expect_matches_reference({tokens, 1, 1, 12, position, window, 0, dtype, 1100, only}, 3,
                                 context_);
      }
    }
  }
}

TEST_P(AttentionSinks, AreSeenByTokensOfEverySpan) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
    expect_matches_reference({1100, 1, 1, 8, 400, 40, 0, dtype, 5}, 5, context_);
    expect_matches_reference({1100, 1, 1, 8, 0, 0, 0, dtype, 70, true}, 6, context_);
  }
}

// Rows [first, first + rows of to) of every head.
void copy_rows(const ConstTensorView& from, const TensorView& to, int64_t first) {
  for (int64_t row = 0; row < to.shape().rows(); ++row) {
    const int64_t head = row / to.shape()[1];
    const int64_t index = first + row % to.shape()[1];
    std::copy_n(from.row(head * from.shape()[1] + index), to.row_bytes_used(), to.row(row));
  }
}

void copy_cache(const Cache& from, Cache& to, int64_t first) {
  copy_rows(from.keys, to.keys, first);
  copy_rows(from.values, to.values, first);
  if (!from.key_scales.defined()) return;
  // Rows of one scale.
  const auto rows = [](const ConstTensorView& scales) {
    return scales.reshaped(Shape{scales.shape()[0], scales.shape()[1], 1});
  };
  const auto target = [](Tensor& scales) {
    return scales.view().reshaped(Shape{scales.shape()[0], scales.shape()[1], 1});
  };
  copy_rows(rows(from.key_scales), target(to.key_scales), first);
  copy_rows(rows(from.value_scales), target(to.value_scales), first);
}

// Without a window, sinks are no different from earlier positions.
TEST_P(AttentionSinks, EqualEarlierPositionsWhereNothingIsHidden) {
  for (const DType dtype : kDTypes) {
    for (const int64_t tokens : {1, 7, 40}) {
      for (const int64_t sinks : {1, 3, 64, 130}) {
        const Case plain{tokens, 2, 2, 48, sinks + 20, 0, 0, dtype};
        Problem whole(plain, 11, context_);
        const std::vector<float> expected = run(whole, context_);
        const Case split{tokens, 2, 2, 48, 20, 0, 0, dtype, sinks};
        Problem problem(split, 11, context_);
        copy_cache(whole.cache, problem.sinks, 0);
        copy_cache(whole.cache, problem.cache, sinks);
        EXPECT_LE(largest_difference(run(problem, context_), expected), 2 * tolerance(split))
            << describe(split);
      }
    }
  }
}

// Alone, every query sees them all: each token as if it were the only one, and in any order.
TEST_P(AttentionSinks, AttendToEachOtherWithoutOrder) {
  for (const DType dtype : kDTypes) {
    for (const int64_t sinks : {1, 3, 64, 130}) {
      const Case c{sinks, 2, 2, 40, 0, 0, 0, dtype, sinks, true};
      Problem problem(c, 13, context_);
      const std::vector<float> together = run(problem, context_);
      Tensor o(DType::kF32, Shape{1, 4, 40});
      for (const int64_t token : {int64_t{0}, sinks / 2, sinks - 1}) {
        SoftmaxAttentionArgs args = problem.args();
        args.q = ConstTensorView(problem.q.as<float>() + token * 160, o.shape());
        args.o = o;
        softmax_attention(context_, args);
        const auto first = together.begin() + token * 160;
        EXPECT_LE(largest_difference(contents(o), {first, first + 160}), tolerance(c))
            << describe(c) << " token " << token;
      }
    }
  }
}

bool all_nan(const std::vector<float>& values, int64_t first, int64_t stride) {
  for (size_t i = static_cast<size_t>(first); i < values.size(); i += stride) {
    if (!std::isnan(values[i])) return false;
  }
  return true;
}

// A poisoned sink spoils every query of its heads, a poisoned slot out of the window none. Codes
// cannot be poisoned; of their scales softmax_attention_int8_test.cpp has more.
TEST_P(AttentionSinks, AreUsedByEveryQueryAndHideNothing) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t tokens : {1, 9, 40}) {
      const Case c{tokens, 1, 2, 32, 500, 20, 30, dtype, 70};
      for (const int64_t poisoned : {0, 69}) {
        Problem problem(c, 17, context_);
        Tensor row(DType::kF32, Shape{1, 1, 32});
        fill_value(row, 0.5f);
        Tensor spoilt(DType::kF32, row.shape());
        fill_value(spoilt, test::kPoison);
        problem.sinks.append(context_, row, spoilt, poisoned);
        EXPECT_TRUE(all_nan(run(problem, context_), 0, 1)) << describe(c);
      }
      Problem problem(c, 17, context_);
      const std::vector<float> expected = run(problem, context_);
      Tensor spoilt(DType::kF32, Shape{1, 1, 32});
      fill_value(spoilt, test::kPoison);
      for (int64_t position = 500 + tokens; position < 500 + tokens + 30; ++position) {
        problem.cache.append(context_, spoilt, spoilt, position);
      }
      EXPECT_EQ(run(problem, context_), expected) << describe(c);
    }
  }
}

TEST_P(AttentionSinks, BitsDoNotDependOnThreads) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
    for (const int64_t tokens : {1, 3, 70}) {
      Context one(1);
      Problem problem({tokens, 3, 3, 32, 600, 300, 0, dtype, 300}, 31, one);
      const std::vector<float> expected = run(problem, one);
      for (const int threads : {2, 3}) {
        Context many(threads);
        EXPECT_EQ(run(problem, many), expected) << threads << " threads, " << tokens << " tokens";
      }
    }
  }
}

TEST_P(AttentionSinks, OutputMayBeTheQueries) {
  for (const int64_t tokens : {1, 5, 40}) {
    for (const bool only : {false, true}) {
      Problem problem({tokens, 2, 2, 48, 0, 0, 0, DType::kF16, 9, only}, 41, context_);
      const std::vector<float> expected = run(problem, context_);
      SoftmaxAttentionArgs args = problem.args();
      args.o = problem.q;
      softmax_attention(context_, args);
      EXPECT_EQ(contents(problem.q), expected);
    }
  }
}

// Scores of sinks far above or below those of the text: one of the two takes all the weight.
TEST_P(AttentionSinks, LargeScoresDoNotOverflow) {
  for (const DType dtype : kDTypes) {
    for (const int64_t tokens : {1, 20, 40}) {
      for (const float score : {-3e4f, 3e4f}) {
        Problem problem({tokens, 1, 2, 64, 70, 0, 0, dtype, 3}, 51, context_);
        fill_value(problem.q, 1.0f);
        Tensor k(DType::kF32, Shape{3, 1, 64}), v(DType::kF32, k.shape());
        fill_value(k, score / 64);
        fill_value(v, 7.0f);
        problem.sinks.append(context_, k, v, 0);
        const std::vector<float> o = run(problem, context_);
        const auto far = [](float x) { return std::fabs(x) < 6; };
        const auto near = [](float x) { return std::fabs(x - 7) < 1e-3f; };
        EXPECT_TRUE(score > 0 ? std::all_of(o.begin(), o.end(), near)
                              : std::all_of(o.begin(), o.end(), far));
      }
    }
  }
}

class SinkArguments : public testing::Test {
 protected:
  Context context_{1};
  Problem problem_{{2, 2, 2, 8, 3, 0, 0, DType::kF16, 5}, 1, context_};
  SoftmaxAttentionArgs args_ = problem_.args();

  void expect_error(const std::string& part) {
    test::expect_usage_error([&] { softmax_attention(context_, args_); }, part);
  }
};

TEST_F(SinkArguments, GoodOnesAreAccepted) {
  softmax_attention(context_, args_);
  args_.keys = args_.values = {};
  args_.first_position = 0;
  softmax_attention(context_, args_);
}

TEST_F(SinkArguments, OneWithoutTheOther) {
  args_.sink_values = {};
  expect_error("sink_values: expected f16 [2, 5, 8]");
  args_ = problem_.args();
  args_.sink_keys = {};
  expect_error("sink_keys: expected [kv heads, sinks, 8], got []");
  args_ = problem_.args();
  args_.values = {};
  expect_error("values: expected f16 [2, 5, 8]");
  args_ = problem_.args();
  args_.keys = {};
  expect_error("keys: expected [kv heads, capacity, 8]");
}

TEST_F(SinkArguments, NothingToSee) {
  args_.keys = args_.values = args_.sink_keys = args_.sink_values = {};
  expect_error("keys: expected [kv heads, capacity, 8]");
  Tensor none(DType::kF16, Shape{2, 0, 8});
  args_.sink_keys = args_.sink_values = none;
  expect_error("sink_keys: expected [kv heads, sinks, 8], got [2, 0, 8]");
  args_ = problem_.args();
  args_.keys = args_.values = none;
  expect_error("keys: expected [kv heads, capacity, 8], got [2, 0, 8]");
}

TEST_F(SinkArguments, OtherShapeOrDtype) {
  Tensor heads(DType::kF16, Shape{1, 5, 8});
  args_.sink_keys = heads;
  expect_error("sink_keys: expected the 2 kv heads of keys, got [1, 5, 8]");
  Tensor wide(DType::kF16, Shape{2, 5, 16});
  args_.sink_keys = wide;
  expect_error("sink_keys: expected [kv heads, sinks, 8], got [2, 5, 16]");
  Tensor brain(DType::kBF16, Shape{2, 5, 8});
  args_.sink_keys = args_.sink_values = brain;
  expect_error("sink_keys: expected f16 [2, 5, 8], got bf16");
  args_ = problem_.args();
  Tensor fewer(DType::kF16, Shape{2, 4, 8});
  args_.sink_values = fewer;
  expect_error("sink_values: expected f16 [2, 5, 8], got f16 [2, 4, 8]");
  args_ = problem_.args();
  Tensor gaps(DType::kF16, Shape{2, 5, 9});
  args_.sink_keys = ConstTensorView(gaps.view().data(), DType::kF16, Shape{2, 5, 8}, 18);
  expect_error("sink_keys: expected contiguous rows");
}

TEST_F(SinkArguments, OnlySinksHaveNoPositions) {
  args_.keys = args_.values = {};
  expect_error("keys: expected a cache for first_position 3 and window 0, got only sinks");
  args_.first_position = 0;
  args_.window_size = 4;
  expect_error("keys: expected a cache for first_position 0 and window 4, got only sinks");
  args_.window_size = 0;
  Tensor q(DType::kF32, Shape{2, 3, 8});
  args_.q = args_.o = q;
  expect_error("q: expected query heads a multiple of 2 kv heads, got 3");
}

TEST_F(SinkArguments, Overlap) {
  Tensor shared(DType::kF32, Shape{2, 4, 8});
  Tensor other(DType::kF32, shared.shape());
  args_.q = other;
  args_.o = shared;
  const ConstTensorView sinks(shared.view().data(), DType::kF16, Shape{2, 5, 8});
  args_.sink_keys = sinks;
  EXPECT_THROW(softmax_attention(context_, args_), Error);
  args_.sink_keys = problem_.sinks.keys;
  args_.sink_values = sinks;
  EXPECT_THROW(softmax_attention(context_, args_), Error);
}

}  // namespace
}  // namespace spb::ops
