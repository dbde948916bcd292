// gated_linear_attention_inputs on a CUDA device against the formulas in double.
#include <gtest/gtest.h>

#include <cmath>

#include "core/test_cuda.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/test_row_counts.h"

namespace spb::ops {
namespace {

using GatedInputsCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Cuda, GatedInputsCuda, test::activation_dtypes(), test::dtype_name);

double softplus(double z) { return std::max(z, 0.0) + std::log1p(std::exp(-std::fabs(z))); }
double relu(double z) { return std::max(z, 0.0); }
double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }
double log_gate(double z) { return -softplus(-z) / 16; }
double tied_gate(double z) { return -softplus(z); }

struct Kind {
  FeatureMap map;
  bool tied;
  bool gate_only;
};
constexpr Kind kKinds[] = {{FeatureMap::kRelu, false, false},
                           {FeatureMap::kSigmoid, false, false},
                           {FeatureMap::kSigmoid, true, false},
                           {FeatureMap::kRelu, false, true}};

void expect_formula(Context& context, const Tensor& got, const Tensor& z, double (*formula)(double),
                    const Kind& kind) {
  Tensor expected(DType::kF32, z.shape());
  for (int64_t i = 0; i < z.shape().elements(); ++i) {
    expected.as<float>()[i] = static_cast<float>(formula(z.as<float>()[i]));
  }
  EXPECT_LE(test::relative_error(test::take(context, got), expected), test::tolerance(got.dtype()))
      << z.shape().to_string() << " " << name(kind.map) << " tied " << kind.tied << " gate only "
      << kind.gate_only;
}

// Gates are f32 beside activations of either dtype.
void expect_formulas(Context& context, DType dtype, const Kind& kind, int64_t rows, int64_t width) {
  Rng rng(1);
  const Tensor q = test::random_tensor(rng, Shape{rows, 3 * width}, 5);
  const Tensor k = test::random_tensor(rng, Shape{rows, width}, 5);
  const Tensor g = test::random_tensor(rng, Shape{rows, width}, 5);
  Tensor device_q = test::put(context, q, dtype);
  Tensor device_k = test::put(context, k, dtype);
  Tensor device_g = kind.tied ? test::poisoned(context, g.shape()) : test::put(context, g);
  GatedLinearAttentionInputsArgs args{device_q, device_k, device_g};
  if (kind.gate_only) args.q = args.k = {};
  args.feature_map = kind.map;
  args.tied_gate = kind.tied;
  gated_linear_attention_inputs(context, args);
  const auto same = [](double z) { return z; };
  const auto map = kind.map == FeatureMap::kRelu ? relu : sigmoid;
  expect_formula(context, device_q, q, kind.gate_only ? +same : map, kind);
  expect_formula(context, device_k, k, kind.gate_only ? +same : map, kind);
  expect_formula(context, device_g, kind.tied ? k : g, kind.tied ? tied_gate : log_gate, kind);
}

// Rows of 37 channels do not fit packs.
TEST_P(GatedInputsCuda, AgreeWithTheFormulas) {
  for (const Kind& kind : kKinds) {
    for (const int64_t width : {37, 64}) expect_formulas(context(), GetParam(), kind, 70, width);
  }
}

TEST_P(GatedInputsCuda, AnyNumberOfRows) {
  for (const Kind& kind : kKinds) {
    for (const int64_t rows : kAwkwardRows) {
      expect_formulas(context(), GetParam(), kind, rows, 5);
      expect_formulas(context(), GetParam(), kind, rows, 16);
    }
  }
}

}  // namespace
}  // namespace spb::ops
