#include "ops/gated_linear_attention/gated_linear_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention_sequences.h"
#include "ops/gated_linear_attention/gated_linear_attention_test_problem.h"

namespace spb::ops {
namespace {

using test::contents;

constexpr float kNan = test::kPoison;

class EveryIsa : public test::EveryIsa {
 protected:
  Context context_{2};
};

INSTANTIATE_TEST_SUITE_P(GatedLinearAttention, EveryIsa, testing::ValuesIn(test::isa_levels()),
                         test::isa_name);

TEST_P(EveryIsa, BothFormsMatchTheReferenceForAnyLength) {
  for (const int64_t tokens : {1, 2, 15, 16, 17, 63, 64, 65, 200}) {
    for (const int64_t group : {1, 2, 7}) {
      const Case c{tokens, 2, group, 64, 32};
      Problem problem(c, 1 + tokens);
      expect_matches_reference(problem, context_, describe(c));
    }
  }
}

TEST_P(EveryIsa, BothFormsMatchTheReferenceForAnyWidth) {
  Rng rng(3);
  const int64_t dims[] = {1, 7, 16, 33, 64, 100, 128};
  for (const int64_t key_dim : dims) {
    for (const int64_t value_dim : dims) {
      const Case c{1 + rng.below(90), 1 + rng.below(2), 1 + rng.below(9), key_dim, value_dim};
      Problem problem(c, 100 + key_dim);
      expect_matches_reference(problem, context_, describe(c));
    }
  }
}

TEST_P(EveryIsa, MoreChunksThanOneSpan) {
  Problem problem({64 * 17 + 5, 1, 1, 16, 16}, 5);
  expect_matches_reference(problem, context_, "long");
}

TEST_P(EveryIsa, ZeroGateAddsExactly) {
  // Small integers: sums are exact in any order.
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    Problem problem({70, 1, 2, 16, 16}, 11);
    Rng rng(12);
    for (Tensor* tensor : {&problem.q, &problem.k, &problem.v, &problem.state}) {
      fill(*tensor, [&] { return float(rng.below(5) - 2); });
    }
    fill(problem.g, [] { return 0.0f; });
    EXPECT_EQ(problem.run(context_, form), problem.run_reference());
  }
}

TEST_P(EveryIsa, ZeroQueriesReadNothing) {
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    Problem problem({70, 2, 2, 32, 48}, 13);
    fill(problem.q, [] { return 0.0f; });
    for (const float x : problem.run(context_, form).o) EXPECT_EQ(x, 0.0f);
  }
}

TEST_P(EveryIsa, PrefillThenDecodeEqualsPrefillOfAll) {
  const Case c{150, 2, 2, 64, 40};  // both forms take part
  for (const int64_t prefix : {1, 16, 64, 100, 149}) {
    Problem problem(c, 17);
    const Result expected = problem.run(context_, Form::kAutomatic);
    fill(problem.o, [] { return kNan; });
    const auto step = [&](int64_t first, int64_t count) {
      const auto part = [&](Tensor& tensor) {
        const Shape& shape = tensor.shape();
        return TensorView(tensor.as<float>() + first * shape[1] * shape[2],
                          Shape{count, shape[1], shape[2]});
      };
      GatedLinearAttentionArgs args = problem.args(Form::kAutomatic);
      args.q = part(problem.q);
      args.k = part(problem.k);
      args.v = part(problem.v);
      args.g = part(problem.g);
      args.o = part(problem.o);
      gated_linear_attention(context_, args);
    };
    step(0, prefix);
    for (int64_t i = prefix; i < c.tokens; ++i) step(i, 1);
    expect_close({contents(problem.o), contents(problem.state)}, expected,
                 fmt::format("prefix {}", prefix));
  }
}

TEST_P(EveryIsa, BitsDoNotDependOnThreads) {
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    Problem problem({100, 3, 2, 48, 80}, 19);
    Context one(1);
    const Result expected = problem.run(one, form);
    for (const int threads : {2, 3, 5}) {
      Context many(threads);
      EXPECT_EQ(problem.run(many, form), expected) << threads;
    }
  }
}

TEST_P(EveryIsa, HeadsAreIndependent) {
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    const Case c{80, 3, 2, 32, 32};
    Problem all(c, 23);
    const Result together = all.run(context_, form);
    for (int64_t head = 0; head < c.kv_heads; ++head) {
      Problem alone({c.tokens, 1, c.group, c.key_dim, c.value_dim}, 0);
      const auto take = [&](Tensor& from, Tensor& to, int64_t width) {
        for (int64_t t = 0; t < to.shape().elements() / width; ++t) {
          std::copy_n(from.as<float>() + (t * c.kv_heads + head) * width, width,
                      to.as<float>() + t * width);
        }
      };
      take(all.q, alone.q, c.group * c.key_dim);
      take(all.k, alone.k, c.key_dim);
      take(all.v, alone.v, c.value_dim);
      take(all.g, alone.g, c.key_dim);
      take(all.state, alone.state, c.key_dim * c.value_dim);
      const Result result = alone.run(context_, form);
      const int64_t width = c.group * c.value_dim;
      for (int64_t i = 0; i < c.tokens * width; ++i) {
        EXPECT_EQ(result.o[i], together.o[(i / width * c.kv_heads + head) * width + i % width]);
      }
    }
  }
}

// A token that is not a number spoils itself and what follows, nothing before it.
TEST_P(EveryIsa, NanSpreadsForwardOnly) {
  const Case c{100, 1, 2, 20, 24};
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    for (Tensor Problem::*which : {&Problem::q, &Problem::k, &Problem::v, &Problem::g}) {
      for (const int64_t token : {0, 15, 40, 64, 99}) {
        Problem problem(c, 29);
        Tensor& tensor = problem.*which;
        const int64_t width = tensor.shape().elements() / c.tokens;
        std::fill_n(tensor.as<float>() + token * width, width, kNan);
        const std::vector<float> o = problem.run(context_, form).o;
        for (int64_t t = 0; t < c.tokens; ++t) {
          const bool spoilt = which == &Problem::q ? t == token : t >= token;
          EXPECT_EQ(std::isnan(o[t * 48]), spoilt) << "token " << t << " of " << token;
        }
      }
    }
  }
}

// A batch is its sequences one by one.
TEST_P(EveryIsa, ABatchEqualsItsMembersAlone) {
  const std::vector<int64_t> lengths = {0, 1, 40, 3, 0, 70};
  for (const Form form : {Form::kRecurrent, Form::kChunked, Form::kAutomatic}) {
    Problem batch({114, 2, 2, 32, 24}, 37);
    std::vector<Tensor> states;
    std::vector<GatedLinearAttentionSequence> sequences;
    Result expected;
    int64_t first = 0;
    for (const int64_t length : lengths) {
      Problem alone({length, 2, 2, 32, 24}, 38 + static_cast<uint64_t>(length));
      for (Tensor Problem::*which : {&Problem::q, &Problem::k, &Problem::v, &Problem::g}) {
        const Shape& shape = (alone.*which).shape();
        std::copy_n((alone.*which).as<float>(), shape.elements(),
                    (batch.*which).as<float>() + first * shape[1] * shape[2]);
      }
      states.emplace_back(DType::kF32, alone.state.shape());
      std::copy_n(alone.state.as<float>(), alone.state.shape().elements(),
                  states.back().as<float>());
      sequences.push_back({length, states.back()});
      const Result result = alone.run(context_, form);
      expected.o.insert(expected.o.end(), result.o.begin(), result.o.end());
      expected.state.insert(expected.state.end(), result.state.begin(), result.state.end());
      first += length;
    }
    fill(batch.o, [] { return kNan; });
    GatedLinearAttentionArgs args = batch.args(form);
    args.state = {};
    args.sequences = sequences;
    gated_linear_attention(context_, args);
    Result got{contents(batch.o), {}};
    for (const Tensor& state : states) {
      const std::vector<float> one = contents(state);
      got.state.insert(got.state.end(), one.begin(), one.end());
    }
    EXPECT_EQ(got, expected);
  }
}

Tensor copied(const Tensor& from) {
  Tensor copy(from.dtype(), from.shape());
  std::copy_n(from.as<float>(), from.shape().elements(), copy.as<float>());
  return copy;
}

// Sequences of several lengths, with the states they pass.
struct Passing {
  static constexpr int64_t kInterval = 33;
  static constexpr int64_t kLengths[] = {70, 0, 32, 33, 35};
  Problem problem{{.tokens = 170, .kv_heads = 2, .group = 2, .key_dim = 24, .value_dim = 19}, 61};
  std::vector<Tensor> states;
  std::vector<GatedLinearAttentionSequence> sequences;
  Tensor boundaries{DType::kF32, Shape{4, 2, 24, 19}};

  Result run(Form form, const std::function<void(const GatedLinearAttentionArgs&)>& solver) {
    states.clear();
    sequences.clear();
    for (const int64_t tokens : kLengths) {
      sequences.push_back({tokens, states.emplace_back(copied(problem.state))});
    }
    fill(boundaries, [] { return kNan; });
    fill(problem.o, [] { return kNan; });
    GatedLinearAttentionArgs args = problem.args(form);
    args.state = {};
    args.sequences = sequences;
    args.boundary_interval = kInterval;
    args.boundary_states = boundaries;
    solver(args);
    return {contents(problem.o), contents(boundaries)};
  }
};

// Calls for kInterval tokens each, one sequence after the other.
Result run_in_calls(Context& context, Problem& problem, Form form) {
  std::vector<float> states;
  int64_t begin = 0;
  for (const int64_t tokens : Passing::kLengths) {
    Tensor state = copied(problem.state);
    for (int64_t first = 0; first < tokens; first += Passing::kInterval) {
      const int64_t count = std::min(Passing::kInterval, tokens - first);
      GatedLinearAttentionArgs part = tokens_of(problem.args(form), begin + first, count);
      part.state = state;
      gated_linear_attention(context, part);
      const std::vector<float> after = contents(state);
      if (count == Passing::kInterval) states.insert(states.end(), after.begin(), after.end());
    }
    begin += tokens;
  }
  return {contents(problem.o), states};
}

// A sequence taken up from any of its boundaries goes on as if it had never stopped.
TEST_P(EveryIsa, StatesAtBoundariesAreThoseOfShorterCalls) {
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    Passing passing;
    const Result got =
        passing.run(form, [&](const auto& args) { gated_linear_attention(context_, args); });
    EXPECT_EQ(got, run_in_calls(context_, passing.problem, form));
    expect_close(got, passing.run(form, gated_linear_attention_reference), "boundaries");
  }
}

TEST_P(EveryIsa, OutputMayBeTheQueries) {
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    for (const int64_t dim : {16, 24, 64, 128}) {  // one and several pieces of the columns
      Problem problem({70, 2, 3, dim, dim}, 31);
      const Result expected = problem.run(context_, form);
      GatedLinearAttentionArgs args = problem.args(form);
      args.o = problem.q;
      gated_linear_attention(context_, args);
      EXPECT_EQ(contents(problem.q), expected.o) << dim;
    }
  }
}

class Arguments : public testing::Test {
 protected:
  Context context_{1};
  Problem problem_{{3, 2, 2, 8, 4}, 1};
  GatedLinearAttentionArgs args_ = problem_.args(Form::kAutomatic);

  void expect_error(const std::string& part) {
    test::expect_usage_error([&] { gated_linear_attention(context_, args_); }, part);
  }
};

TEST_F(Arguments, GoodOnesAreAccepted) { gated_linear_attention(context_, args_); }

TEST_F(Arguments, Absent) {
  args_.q = {};
  expect_error("q: expected [tokens, query heads, key_dim]");
}

TEST_F(Arguments, HeadsThatDoNotDivide) {
  Tensor q(DType::kF32, Shape{3, 3, 8});
  args_.q = q;
  expect_error("multiple of 2 kv heads, got 3");
}

TEST_F(Arguments, WrongShapes) {
  Tensor state(DType::kF32, Shape{2, 4, 8});
  args_.state = state;
  expect_error("state: expected f32 [2, 8, 4], got f32 [2, 4, 8]");
  args_ = problem_.args(Form::kAutomatic);
  Tensor g(DType::kF32, Shape{2, 2, 8});
  args_.g = g;
  expect_error("g: expected f32 [3, 2, 8], got f32 [2, 2, 8]");
  args_ = problem_.args(Form::kAutomatic);
  Tensor v(DType::kF32, Shape{3, 1, 4});
  args_.v = v;
  expect_error("v: expected [3, 2, value_dim], got [3, 1, 4]");
}

TEST_F(Arguments, WrongDtype) {
  Tensor k(DType::kF16, Shape{3, 2, 8});
  args_.k = k;
  expect_error("k: expected f32 [3, 2, 8], got f16");
}

TEST_F(Arguments, OverlapAndScale) {
  args_.scale = kNan;
  expect_error("scale: expected a finite number");
  args_ = problem_.args(Form::kAutomatic);
  args_.o = problem_.v;
  EXPECT_THROW(gated_linear_attention(context_, args_), Error);
}

TEST_F(Arguments, Sequences) {
  Tensor other(DType::kF32, Shape{2, 8, 4});
  const TensorView state = args_.state;
  std::vector<GatedLinearAttentionSequence> sequences = {{1, state}, {2, other}};
  args_.sequences = sequences;
  expect_error("state: expected none beside those of the sequences");
  args_.state = {};
  gated_linear_attention(context_, args_);
  sequences[1].tokens = 1;
  expect_error("sequences: expected lengths that add up to 3 tokens, got 2");
  sequences[1].tokens = 3;
  expect_error("sequences: expected lengths that add up to 3 tokens, got 3 where 2 are left");
  sequences[1].tokens = -1;
  expect_error("sequences: expected lengths that add up to 3 tokens, got -1");
  sequences[1] = {2, state};
  expect_error("a state of its own for each");
  sequences[1] = {2, TensorView()};
  expect_error("state: expected f32 [2, 8, 4]");
}

TEST_F(Arguments, Boundaries) {
  Tensor states(DType::kF32, Shape{1, 2, 8, 4});
  args_.boundary_states = states;
  expect_error("boundary_states: expected none without an interval");
  args_.boundary_interval = -1;
  expect_error("boundary_interval: expected at least 0, got -1");
  args_.boundary_interval = 1;
  expect_error("boundary_states: expected f32 [3, 2, 8, 4]");
  args_.boundary_interval = 2;
  gated_linear_attention(context_, args_);
  args_.boundary_states = args_.state.reshaped(states.shape());
  expect_error("overlap");
  args_.boundary_states = {};
  expect_error("boundary_states");
  args_.boundary_interval = 4;
  gated_linear_attention(context_, args_);
}

TEST_F(Arguments, NoTokensLeaveTheState) {
  Problem none({0, 2, 2, 8, 4}, 3);
  const std::vector<float> before = contents(none.state);
  gated_linear_attention(context_, none.args(Form::kChunked));
  EXPECT_EQ(contents(none.state), before);
}

}  // namespace
}  // namespace spb::ops
