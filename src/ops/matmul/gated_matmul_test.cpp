#include "ops/matmul/gated_matmul.h"

#include <gtest/gtest.h>

#include "core/block_formats.h"
#include "core/test_cuda.h"
#include "core/test_errors.h"
#include "ops/swiglu/swiglu.h"
#include "ops/test_row_counts.h"

namespace spb::ops {
namespace {

// Both products and their gate in double.
Tensor reference(ConstTensorView x, ConstTensorView gate, ConstTensorView up) {
  const Shape shape{x.shape()[0], gate.shape()[0]};
  Tensor g(DType::kF32, shape);
  Tensor u(DType::kF32, shape);
  Tensor y(DType::kF32, shape);
  matmul_reference(x, gate, {}, g);
  matmul_reference(x, up, {}, u);
  swiglu_reference({g, u, y});
  return y;
}

// Weights that keep the gates within what tells a silu from a ramp.
Tensor small_weight(Rng& rng, int64_t rows, int64_t columns) {
  return test::random_tensor(rng, Shape{rows, columns},
                             1.5f / std::sqrt(static_cast<float>(columns)));
}

Tensor rounded(const Tensor& values, DType dtype) {
  Tensor out(dtype, values.shape());
  for (int64_t i = 0; i < values.shape()[0]; ++i) {
    quantize_row(dtype, values.view().row_as<float>(i), out.view().row(i), values.shape()[1]);
  }
  return out;
}

TEST(GatedMatmul, IsTwoProductsAndTheirGate) {
  Context context(2);
  Rng rng(71);
  for (const int64_t rows : {0, 1, 5, 70}) {
    const Tensor gate = small_weight(rng, 48, 96);
    const Tensor up = small_weight(rng, 48, 96);
    const MatmulWeight gate_weight = prepare_matmul_weight(context, gate);
    const MatmulWeight up_weight = prepare_matmul_weight(context, up);
    const Tensor x = test::random_tensor(rng, Shape{rows, 96});
    Tensor y(DType::kF32, Shape{rows, 48});
    std::fill_n(y.as<float>(), y.shape().elements(), test::kPoison);
    gated_matmul(context, {x, &gate_weight, &up_weight, y});
    EXPECT_LE(test::relative_error(y, reference(x, gate, up)), 2e-6) << rows << " rows";
  }
}

TEST(GatedMatmul, RefusesWeightsThatDiffer) {
  Context context(1);
  Rng rng(72);
  const MatmulWeight gate = prepare_matmul_weight(context, small_weight(rng, 48, 96));
  const MatmulWeight up = prepare_matmul_weight(context, small_weight(rng, 40, 96));
  const Tensor x = test::random_tensor(rng, Shape{2, 96});
  Tensor y(DType::kF32, Shape{2, 48});
  test::expect_error(ErrorKind::kUsage, "up: expected a weight [48, 96], got [40, 96]", [&] {
    gated_matmul(context, {x, &gate, &up, y});
  });
  test::expect_error(ErrorKind::kUsage, "gated_matmul: y:", [&] {
    gated_matmul(context, {x, &up, &up, y});
  });
}

class GatedMatmulCuda : public test::OnCuda {
 protected:
  void expect_agreement(int64_t rows, int64_t outputs, int64_t columns) {
    const Tensor gate = rounded(small_weight(rng_, outputs, columns), GetParam());
    const Tensor up = rounded(small_weight(rng_, outputs, columns), GetParam());
    const MatmulWeight gate_weight = prepare_matmul_weight(context(), gate);
    const MatmulWeight up_weight = prepare_matmul_weight(context(), up);
    const Tensor x = test::random_tensor(rng_, Shape{rows, columns});
    const Tensor expected = reference(x, gate, up);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Tensor x_device = test::put(context(), x, dtype);
      Tensor y = test::poisoned(context(), expected.shape(), dtype);
      gated_matmul(context(), {x_device, &gate_weight, &up_weight, y});
      EXPECT_LE(test::relative_error(test::take(context(), y), expected),
                dtype == DType::kF32 ? 2e-6 : 1e-2)
          << rows << " rows, " << name(dtype);
    }
  }

  Rng rng_{73};
};
INSTANTIATE_TEST_SUITE_P(Weights, GatedMatmulCuda,
                         testing::Values(DType::kBF16, DType::kF32, DType::kQ8_0),
                         test::dtype_name);

// Few rows and many, of which the last ones fill no tile; outputs and columns that fill none.
TEST_P(GatedMatmulCuda, AgreesWithTheReference) {
  for (const auto& [rows, outputs, columns] : {std::array<int64_t, 3>{1, 96, 64},
                                               {70, 96, 96},
                                               {512, 128, 64},
                                               {700, 200, 416},
                                               {2500, 640, 288}}) {
    expect_agreement(rows, outputs, columns);
  }
}

TEST_P(GatedMatmulCuda, AnyNumberOfRows) {
  for (const int64_t rows : kAwkwardRows) expect_agreement(rows, 72, 96);
}

}  // namespace
}  // namespace spb::ops
