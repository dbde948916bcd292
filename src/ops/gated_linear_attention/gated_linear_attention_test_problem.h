// Random problems for the tests of gated_linear_attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/test_operators.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {

using Form = GatedLinearAttentionForm;

struct Case {
  int64_t tokens = 1;
  int64_t kv_heads = 1;
  int64_t group = 1;
  int64_t key_dim = 16;
  int64_t value_dim = 16;
};

inline std::string describe(const Case& c) {
  return fmt::format("L {} kv {} group {} K {} V {} isa {}", c.tokens, c.kv_heads, c.group,
                     c.key_dim, c.value_dim, name(isa()));
}

inline void fill(Tensor& tensor, const std::function<float()>& next) {
  std::generate_n(tensor.as<float>(), tensor.shape().elements(), next);
}

struct Result {
  std::vector<float> o;
  std::vector<float> state;
  bool operator==(const Result&) const = default;
};

struct Problem {
  Case c;
  Tensor q, k, v, g, state, o;
  bool rectify = false;

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
    GatedLinearAttentionArgs all{q, k, v, g, state, o, 1.0f / std::sqrt(float(c.key_dim)), form};
    all.rectify = rectify;
    return all;
  }

  // Runs on a copy of the state, so that a problem can be solved again.
  template <typename Operator>
  Result solve(Operator&& solver, Form form) {
    Tensor working(DType::kF32, state.shape());
    std::copy_n(state.as<float>(), state.shape().elements(), working.as<float>());
    fill(o, [] { return test::kPoison; });
    GatedLinearAttentionArgs arguments = args(form);
    arguments.state = working;
    solver(arguments);
    return {test::contents(o), test::contents(working)};
  }
  Result run(Context& context, Form form) {
    return solve([&](const auto& arguments) { gated_linear_attention(context, arguments); }, form);
  }
  Result run_reference() { return solve(gated_linear_attention_reference, Form::kAutomatic); }
};

// Largest difference as a share of the largest expected value.
inline double error(const std::vector<float>& got, const std::vector<float>& expected) {
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

inline void expect_close(const Result& got, const Result& expected, const std::string& what) {
  EXPECT_LE(error(got.o, expected.o), 1e-5) << what << " o";
  EXPECT_LE(error(got.state, expected.state), 1e-5) << what << " state";
}

inline void expect_matches_reference(Problem& problem, Context& context, const std::string& what) {
  const Result expected = problem.run_reference();
  expect_close(problem.run(context, Form::kRecurrent), expected, "recurrent " + what);
  expect_close(problem.run(context, Form::kChunked), expected, "chunked " + what);
  expect_close(problem.run(context, Form::kAutomatic), expected, "automatic " + what);
}

}  // namespace spb::ops
