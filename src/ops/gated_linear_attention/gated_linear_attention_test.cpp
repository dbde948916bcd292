#include "ops/gated_linear_attention/gated_linear_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/isa.h"
#include "core/rng.h"

namespace spb::ops {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
using Form = GatedLinearAttentionForm;

struct Case {
  int64_t tokens = 1;
  int64_t kv_heads = 1;
  int64_t group = 1;
  int64_t key_dim = 16;
  int64_t value_dim = 16;
};

std::string describe(const Case& c) {
  return fmt::format("L {} kv {} group {} K {} V {} isa {}", c.tokens, c.kv_heads, c.group,
                     c.key_dim, c.value_dim, name(isa()));
}

void fill(Tensor& tensor, const std::function<float()>& next) {
  std::generate_n(tensor.as<float>(), tensor.shape().elements(), next);
}

std::vector<float> contents(const Tensor& tensor) {
  return {tensor.as<float>(), tensor.as<float>() + tensor.shape().elements()};
}

struct Result {
  std::vector<float> o;
  std::vector<float> state;
  bool operator==(const Result&) const = default;
};

struct Problem {
  Case c;
  Tensor q, k, v, g, state, o;

  Problem(const Case& case_, uint64_t seed)
      : c(case_),
        q(DType::kF32, Shape{c.tokens, c.kv_heads * c.group, c.key_dim}),
        k(DType::kF32, Shape{c.tokens, c.kv_heads, c.key_dim}),
        v(DType::kF32, Shape{c.tokens, c.kv_heads, c.value_dim}),
        g(DType::kF32, k.shape()),
        state(DType::kF32, Shape{c.kv_heads, c.key_dim, c.value_dim}),
        o(DType::kF32, Shape{c.tokens, c.kv_heads * c.group, c.value_dim}) {
    Rng rng(seed);
    for (Tensor* tensor : {&q, &k, &v, &state}) fill(*tensor, [&] { return rng.normal(); });
    fill(g, [&] { return -rng.uniform(0.0f, 0.5f); });
  }

  GatedLinearAttentionArgs args(Form form) {
    return {q, k, v, g, state, o, 1.0f / std::sqrt(float(c.key_dim)), form};
  }

  // Runs on a copy of the state, so that a problem can be solved again.
  template <typename Operator>
  Result solve(Operator&& solver, Form form) {
    Tensor working(DType::kF32, state.shape());
    std::copy_n(state.as<float>(), state.shape().elements(), working.as<float>());
    fill(o, [] { return kNan; });
    GatedLinearAttentionArgs arguments = args(form);
    arguments.state = working;
    solver(arguments);
    return {contents(o), contents(working)};
  }
  Result run(Context& context, Form form) {
    return solve([&](const auto& arguments) { gated_linear_attention(context, arguments); }, form);
  }
  Result run_reference() { return solve(gated_linear_attention_reference, Form::kAutomatic); }
};

// Largest difference as a share of the largest expected value.
double error(const std::vector<float>& got, const std::vector<float>& expected) {
  double largest = 0;
  double scale = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(double(got[i]) - double(expected[i]));
    if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, difference);
    scale = std::max(scale, std::fabs(double(expected[i])));
  }
  return largest / scale;
}

void expect_close(const Result& got, const Result& expected, const std::string& what) {
  EXPECT_LE(error(got.o, expected.o), 1e-5) << what << " o";
  EXPECT_LE(error(got.state, expected.state), 1e-5) << what << " state";
}

void expect_matches_reference(Problem& problem, Context& context, const std::string& what) {
  const Result expected = problem.run_reference();
  expect_close(problem.run(context, Form::kRecurrent), expected, "recurrent " + what);
  expect_close(problem.run(context, Form::kChunked), expected, "chunked " + what);
  expect_close(problem.run(context, Form::kAutomatic), expected, "automatic " + what);
}

class EveryIsa : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > detect_isa()) GTEST_SKIP() << "not offered by this machine";
    limit_isa(GetParam());
  }
  void TearDown() override { limit_isa(detect_isa()); }
  Context context_{2};
};

INSTANTIATE_TEST_SUITE_P(GatedLinearAttention, EveryIsa,
                         testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& level) { return std::string(name(level.param)); });

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

TEST_P(EveryIsa, ExtremeGates) {
  Rng rng(7);
  const std::vector<std::pair<const char*, std::function<float()>>> gates = {
      {"zero", [] { return 0.0f; }},
      {"tiny", [] { return -1e-7f; }},
      {"floor", [] { return kMinLogDecay; }},
      {"below the floor", [] { return -1e30f; }},
      {"minus infinity", [] { return -std::numeric_limits<float>::infinity(); }},
      {"strong", [&] { return rng.uniform(-20.0f, 0.0f); }},
      {"a reset now and then", [&] { return rng.below(20) == 0 ? -1e9f : -1e-3f; }},
      {"resets mostly", [&] { return rng.below(4) != 0 ? -87.0f : -0.01f; }},
  };
  for (const auto& [what, gate] : gates) {
    for (const int64_t tokens : {1, 40, 130}) {
      Problem problem({tokens, 1, 2, 32, 32}, 9);
      fill(problem.g, gate);
      expect_matches_reference(problem, context_, what);
    }
  }
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

TEST_P(EveryIsa, OutputMayBeTheQueries) {
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    Problem problem({70, 2, 3, 64, 64}, 31);
    const Result expected = problem.run(context_, form);
    GatedLinearAttentionArgs args = problem.args(form);
    args.o = problem.q;
    gated_linear_attention(context_, args);
    EXPECT_EQ(contents(problem.q), expected.o);
  }
}

TEST_P(EveryIsa, InputsMatchTheirFormulas) {
  Rng rng(37);
  Tensor q(DType::kF32, Shape{5, 2, 33});
  Tensor k(DType::kF32, Shape{5, 1, 33});
  Tensor g(DType::kF32, Shape{5, 1, 33});
  for (Tensor* tensor : {&q, &k}) fill(*tensor, [&] { return rng.normal(); });
  fill(g, [&] { return rng.uniform(-1.0f, 1.0f) * std::pow(10.0f, rng.uniform(-6.0f, 2.5f)); });
  const std::vector<float> special = {0.0f, -0.0f, 1e30f, -1e30f, 80.0f, INFINITY, -INFINITY};
  std::copy(special.begin(), special.end(), g.as<float>());
  const std::vector<float> old_q = contents(q), old_k = contents(k), old_g = contents(g);
  gated_linear_attention_inputs(context_, {q, k, g, 16.0f});
  for (size_t i = 0; i < old_q.size(); ++i) EXPECT_EQ(q.as<float>()[i], std::max(old_q[i], 0.0f));
  for (size_t i = 0; i < old_k.size(); ++i) EXPECT_EQ(k.as<float>()[i], std::max(old_k[i], 0.0f));
  for (size_t i = 0; i < old_g.size(); ++i) {
    const double z = old_g[i];
    const double expected = (std::min(z, 0.0) - std::log1p(std::exp(-std::fabs(z)))) / 16;
    const float got = g.as<float>()[i];
    EXPECT_LE(got, 0.0f);
    if (std::isinf(expected)) {
      EXPECT_EQ(got, expected);
    } else {
      EXPECT_NEAR(got, expected, std::fabs(expected) * 1e-6 + 1e-38) << "z " << z;
    }
  }
  for (Tensor* tensor : {&q, &k, &g}) fill(*tensor, [] { return kNan; });
  gated_linear_attention_inputs(context_, {q, k, g, 16.0f});
  for (Tensor* tensor : {&q, &k, &g}) {
    for (const float x : contents(*tensor)) EXPECT_TRUE(std::isnan(x));
  }
}

class Arguments : public testing::Test {
 protected:
  Context context_{1};
  Problem problem_{{3, 2, 2, 8, 4}, 1};
  GatedLinearAttentionArgs args_ = problem_.args(Form::kAutomatic);

  void expect_error(const std::string& part) {
    try {
      gated_linear_attention(context_, args_);
      FAIL() << "expected an error with: " << part;
    } catch (const Error& thrown) {
      EXPECT_EQ(thrown.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(thrown.what()).find(part), std::string::npos) << thrown.what();
    }
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

TEST_F(Arguments, NoTokensLeaveTheState) {
  Problem none({0, 2, 2, 8, 4}, 3);
  const std::vector<float> before = contents(none.state);
  gated_linear_attention(context_, none.args(Form::kChunked));
  EXPECT_EQ(contents(none.state), before);
}

TEST_F(Arguments, BadNormalizer) {
  Tensor x(DType::kF32, Shape{1, 4}), y(DType::kF32, Shape{1, 4}), z(DType::kF32, Shape{1, 4});
  EXPECT_THROW(gated_linear_attention_inputs(context_, {x, y, z, 0.0f}), Error);
  EXPECT_THROW(gated_linear_attention_inputs(context_, {x, y, z, kNan}), Error);
  EXPECT_THROW(gated_linear_attention_inputs(context_, {x, x, z, 1.0f}), Error);
}

}  // namespace
}  // namespace spb::ops
