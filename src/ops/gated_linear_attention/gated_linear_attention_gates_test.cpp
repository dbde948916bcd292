// Gates of any strength: both forms against the reference where decays vanish, or never end.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention_test_problem.h"

namespace spb::ops {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class GatesOfAnyStrength : public test::EveryIsa {
 protected:
  Context context_{2};
  Rng rng_{7};
};

INSTANTIATE_TEST_SUITE_P(GatedLinearAttention, GatesOfAnyStrength,
                         testing::ValuesIn(test::isa_levels()), test::isa_name);

// A tied gate: log(1 - sigmoid(z)).
float tied(double z) {
  return static_cast<float>(-std::max(z, 0.0) - std::log1p(std::exp(-std::fabs(z))));
}

// What gates may be: constant, random, and mixtures in which one extreme follows another.
std::vector<std::pair<std::string, std::function<float()>>> gates(Rng& rng) {
  const auto tied_up_to = [&rng](float z) {
    return [&rng, z] { return tied(rng.uniform(-z, z)); };
  };
  const std::vector<float> extremes = {0.0f,
                                       -0.0f,
                                       -1e-45f,
                                       -1e-7f,
                                       -0.5f,
                                       -20.f,
                                       -87.5f,
                                       -88.0f,
                                       -88.0001f,
                                       -1e9f,
                                       -std::numeric_limits<float>::max(),
                                       -kInfinity};
  std::vector<std::pair<std::string, std::function<float()>>> all = {
      {"tied, |z| < 1", tied_up_to(1)},
      {"tied, |z| < 10", tied_up_to(10)},
      {"tied, |z| < 100", tied_up_to(100)},
      {"a reset now and then", [&rng] { return rng.below(20) == 0 ? -1e9f : -1e-3f; }},
      {"resets mostly", [&rng] { return rng.below(4) != 0 ? -87.0f : -0.01f; }},
      {"mixture", [&rng, extremes] { return extremes[rng.below(extremes.size())]; }},
      {"mixture with tied",
       [&rng, extremes] {
         return rng.below(2) == 0 ? extremes[rng.below(extremes.size())] : tied(20 * rng.normal());
       }},
  };
  for (const float gate : extremes) all.emplace_back(fmt::format("{}", gate), [=] { return gate; });
  return all;
}

TEST_P(GatesOfAnyStrength, BothFormsMatchTheReference) {
  for (const auto& [what, gate] : gates(rng_)) {
    for (const int64_t tokens : {1, 17, 40, 130}) {
      Problem problem({tokens, 1, 2, 33, 32}, 9);
      fill(problem.g, gate);
      expect_matches_reference(problem, context_, fmt::format("{}, {} tokens", what, tokens));
    }
  }
}

// Positive numbers leave no room for cancellation: then every element keeps its precision, also
// those of tokens that remember next to nothing.
TEST_P(GatesOfAnyStrength, EveryElementKeepsItsPrecision) {
  for (const auto& [what, gate] : gates(rng_)) {
    Problem problem({100, 1, 2, 32, 16}, 9);
    for (Tensor* tensor : {&problem.q, &problem.k, &problem.v, &problem.state}) {
      fill(*tensor, [&] { return std::exp(rng_.uniform(-5.0f, 5.0f)); });
    }
    fill(problem.g, gate);
    const Result expected = problem.run_reference();
    for (const Form form : {Form::kRecurrent, Form::kChunked}) {
      const Result got = problem.run(context_, form);
      for (size_t i = 0; i < got.o.size(); ++i) {
        ASSERT_NEAR(got.o[i], expected.o[i], 1e-5 * expected.o[i]) << what << " o " << i;
      }
      for (size_t i = 0; i < got.state.size(); ++i) {
        ASSERT_NEAR(got.state[i], expected.state[i], 1e-5 * expected.state[i]) << what;
      }
    }
  }
}

// As a layer with tied gates uses it: keys and gates from the same projection.
TEST_P(GatesOfAnyStrength, TiedInputsMatchTheReference) {
  for (const float spread : {1.0f, 10.0f, 100.0f, 1e30f}) {
    for (const int64_t tokens : {1, 40, 130}) {
      Problem problem({tokens, 2, 2, 40, 24}, 21);
      fill(problem.k, [&] { return rng_.uniform(-spread, spread); });
      fill(problem.g, [] { return test::kPoison; });
      gated_linear_attention_inputs(
          context_, {problem.q, problem.k, problem.g, 16.0f, FeatureMap::kSigmoid, true});
      expect_matches_reference(problem, context_, fmt::format("spread {}", spread));
    }
  }
}

}  // namespace
}  // namespace spb::ops
