#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention_test_problem.h"

namespace spb::ops {
namespace {

using test::contents;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kSmallestNormal = std::numeric_limits<float>::min();

class GatedInputs : public test::EveryIsa {
 protected:
  Context context_{2};
};

INSTANTIATE_TEST_SUITE_P(GatedLinearAttention, GatedInputs, testing::ValuesIn(test::isa_levels()),
                         test::isa_name);

// Numbers of every size and sign; the elements of a tensor with odd rows.
std::vector<float> projections() {
  std::vector<float> z = {0.0f,  -0.0f,  1e-45f,    -1e-45f,    1e-39f, -1e-39f, 1e30f, -1e30f,
                          3e38f, -3e38f, kInfinity, -kInfinity, 16.6f,  -16.6f,  17.4f, -17.4f};
  for (int i = -2000; i <= 2000; ++i) z.push_back(static_cast<float>(i) / 10);
  Rng rng(3);
  for (int i = 0; i < 2000; ++i) {
    z.push_back(rng.uniform(-1.0f, 1.0f) * std::pow(10.0f, rng.uniform(-44.0f, 2.5f)));
  }
  while (z.size() % 37 != 0) z.push_back(1.0f);
  return z;
}

Tensor rows_of(const std::vector<float>& z) {
  Tensor tensor(DType::kF32, Shape{static_cast<int64_t>(z.size()) / 37, 37});
  std::copy(z.begin(), z.end(), tensor.as<float>());
  return tensor;
}

double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::fabs(z))); }

double sigmoid(double z) {
  return z < 0 ? std::exp(z) / (1 + std::exp(z)) : 1 / (1 + std::exp(-z));
}

void expect_near(float got, double expected, float z) {
  if (std::isinf(expected)) {
    EXPECT_EQ(got, expected) << "z " << z;
  } else {
    EXPECT_NEAR(got, expected, 1e-6 * std::fabs(expected) + kSmallestNormal) << "z " << z;
  }
}

// Every element against its formula in double.
void expect_maps(const Tensor& tensor, const std::vector<float>& z, double (*formula)(double)) {
  for (size_t i = 0; i < z.size(); ++i) expect_near(tensor.as<float>()[i], formula(z[i]), z[i]);
}

TEST_P(GatedInputs, GateOfItsOwn) {
  const std::vector<float> z = projections();
  for (const FeatureMap map : {FeatureMap::kRelu, FeatureMap::kSigmoid}) {
    const auto formula =
        map == FeatureMap::kRelu ? [](double x) { return std::max(x, 0.0); } : sigmoid;
    Tensor q = rows_of(z), k = rows_of(z), g = rows_of(z);
    gated_linear_attention_inputs(context_, {q, k, g, 16.0f, map});
    expect_maps(q, z, formula);
    expect_maps(k, z, formula);
    expect_maps(g, z, [](double x) { return -softplus(-x) / 16; });
  }
}

TEST_P(GatedInputs, TheGateAlone) {
  const std::vector<float> z = projections();
  Tensor g = rows_of(z);
  gated_linear_attention_inputs(context_, {.q = {}, .k = {}, .g = g});
  expect_maps(g, z, [](double x) { return -softplus(-x) / 16; });
}

TEST_P(GatedInputs, GateTiedToTheKey) {
  const std::vector<float> z = projections();
  Tensor q = rows_of(z), k = rows_of(z), g(DType::kF32, q.shape());
  fill(g, [] { return test::kPoison; });
  gated_linear_attention_inputs(context_, {q, k, g, 16.0f, FeatureMap::kSigmoid, true});
  expect_maps(q, z, sigmoid);
  expect_maps(k, z, sigmoid);
  expect_maps(g, z, [](double x) { return -softplus(x); });
  for (const float gate : contents(g)) EXPECT_LE(gate, 0.0f);
}

// A tied gate that hardly decays is -exp(z): 1 - k would have lost it.
TEST_P(GatedInputs, WeakTiedGatesKeepTheirPrecision) {
  const std::vector<float> z(37, -60.0f);
  Tensor q = rows_of(z), k = rows_of(z), g = rows_of(z);
  gated_linear_attention_inputs(context_, {q, k, g, 16.0f, FeatureMap::kSigmoid, true});
  for (const float gate : contents(g)) EXPECT_NEAR(gate / -std::exp(-60.0), 1, 1e-6);
  EXPECT_EQ(contents(k)[0], -contents(g)[0]);
}

TEST_P(GatedInputs, NanStaysNan) {
  const std::vector<float> nan(37, test::kPoison);
  const auto all_nan = [](const Tensor& tensor) {
    const std::vector<float> got = contents(tensor);
    return std::all_of(got.begin(), got.end(), [](float x) { return std::isnan(x); });
  };
  const std::pair<FeatureMap, bool> kinds[] = {
      {FeatureMap::kRelu, false}, {FeatureMap::kSigmoid, false}, {FeatureMap::kSigmoid, true}};
  for (const auto& [map, tied] : kinds) {
    Tensor q = rows_of(nan), k = rows_of(nan), g = rows_of(nan);
    if (tied) fill(g, [] { return 0.0f; });
    gated_linear_attention_inputs(context_, {q, k, g, 16.0f, map, tied});
    EXPECT_TRUE(all_nan(q) && all_nan(k) && all_nan(g)) << name(map) << " tied " << tied;
  }
}

// Views into wider matrices: what lies between the rows stays.
TEST_P(GatedInputs, RowsMayHaveGaps) {
  Rng rng(5);
  for (const bool tied : {false, true}) {
    test::StridedMatrix q(5, 33, 3), k(5, 19, 2), g(5, 19, 7);
    q.fill_normal(rng);
    k.fill_normal(rng);
    g.fill_normal(rng);
    const test::StridedMatrix z = (tied ? k : g).clone();
    const FeatureMap map = tied ? FeatureMap::kSigmoid : FeatureMap::kRelu;
    gated_linear_attention_inputs(context_, {q.view(), k.view(), g.view(), 2.0f, map, tied});
    for (int64_t i = 0; i < 5 * 19; ++i) {
      const float x = z.at(i / 19, i % 19);
      expect_near(g.at(i / 19, i % 19), tied ? -softplus(x) : -softplus(-x) / 2, x);
    }
    EXPECT_TRUE(q.gaps_untouched() && k.gaps_untouched() && g.gaps_untouched());
  }
}

// gated_linear_attention makes the same of inputs that it rectifies and of such that were before.
void expect_rectifies(Context& context, int64_t tokens, Form form) {
  Problem problem({tokens, 2, 3, 40, 40}, 71);
  problem.rectify = true;
  const Result got = problem.run(context, form);
  expect_close(got, problem.run_reference(), "rectified");
  EXPECT_EQ(problem.solve(
                [&](GatedLinearAttentionArgs args) {
                  std::copy_n(problem.q.as<float>(), args.o.shape().elements(), args.o.as<float>());
                  args.q = args.o;
                  gated_linear_attention(context, args);
                },
                form),
            got);
  Tensor gate = rows_of(std::vector<float>(37));
  gated_linear_attention_inputs(context, {problem.q, problem.k, gate});
  problem.rectify = false;
  EXPECT_EQ(problem.run(context, form), got);
  problem.rectify = true;
  problem.k.as<float>()[13] = test::kPoison;
  EXPECT_TRUE(std::isnan(problem.run(context, form).o[0]));
}

TEST_P(GatedInputs, MayBeRectifiedByTheAttention) {
  for (const Form form : {Form::kRecurrent, Form::kChunked}) {
    for (const int64_t tokens : {1, 70}) expect_rectifies(context_, tokens, form);
  }
}

TEST(FeatureMap, HasNames) {
  for (const FeatureMap map : {FeatureMap::kRelu, FeatureMap::kSigmoid}) {
    EXPECT_EQ(parse_feature_map(name(map)), map);
  }
  EXPECT_EQ(name(FeatureMap::kRelu), "relu");
  EXPECT_EQ(name(FeatureMap::kSigmoid), "sigmoid");
  EXPECT_FALSE(parse_feature_map("Relu").has_value());
  EXPECT_FALSE(parse_feature_map("").has_value());
}

class GatedInputArguments : public testing::Test {
 protected:
  Context context_{1};
  Tensor q_{DType::kF32, Shape{2, 4}};
  Tensor k_{DType::kF32, Shape{2, 6}};
  Tensor g_{DType::kF32, Shape{2, 6}};
  GatedLinearAttentionInputsArgs args_{q_, k_, g_};

  void expect_error(const std::string& part) {
    test::expect_usage_error([&] { gated_linear_attention_inputs(context_, args_); }, part);
  }
};

TEST_F(GatedInputArguments, BadNormalizer) {
  for (const float normalizer : {0.0f, -1.0f, test::kPoison, kInfinity}) {
    args_.gate_logit_normalizer = normalizer;
    expect_error("gate_logit_normalizer: expected a number > 0");
  }
}

TEST_F(GatedInputArguments, Overlap) {
  args_.q = k_;
  EXPECT_THROW(gated_linear_attention_inputs(context_, args_), Error);
  args_.q = q_;
  args_.g = k_;
  EXPECT_THROW(gated_linear_attention_inputs(context_, args_), Error);
}

TEST_F(GatedInputArguments, Absent) {
  args_.q = {};
  expect_error("q: expected f32");
  args_.k = {};
  gated_linear_attention_inputs(context_, args_);
  args_.q = q_;
  expect_error("k: expected f32");
  args_.q = {};
  args_.tied_gate = true;
  args_.feature_map = FeatureMap::kSigmoid;
  expect_error("expected f32");
}

TEST_F(GatedInputArguments, TiedGates) {
  args_.tied_gate = true;
  expect_error("tied_gate: expected the feature map sigmoid, got relu");
  args_.feature_map = FeatureMap::kSigmoid;
  gated_linear_attention_inputs(context_, args_);
  Tensor wide(DType::kF32, Shape{2, 7});
  args_.g = wide;
  expect_error("g: expected f32 [2, 6], got f32 [2, 7]");
}

}  // namespace
}  // namespace spb::ops
