#include "core/block_formats.h"
#include "core/test_cuda.h"
#include "ops/matmul/matmul.h"

namespace spb::ops {
namespace {

using MatmulCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Formats, MatmulCuda,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0,
                                         DType::kQ4_0, DType::kQ4_1, DType::kQ5_0),
                         test::dtype_name);

Tensor random_weight(Rng& rng, DType dtype, int64_t rows, int64_t columns) {
  const Tensor values = test::random_tensor(rng, Shape{rows, columns});
  Tensor weight(dtype, values.shape());
  for (int64_t n = 0; n < rows; ++n) {
    quantize_row(dtype, values.as<float>() + n * columns, weight.view().row(n), columns);
  }
  return weight;
}

TEST_P(MatmulCuda, AgreesWithTheReference) {
  Rng rng(51);
  const Tensor weight = random_weight(rng, GetParam(), 70, 416);
  const Tensor bias = test::random_tensor(rng, Shape{70});
  const MatmulWeight prepared = prepare_matmul_weight(context(), weight);
  const Tensor bias_device = test::put(context(), bias);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t rows : {1, 2, 3, 7, 8, 9, 65}) {
      const Tensor x = test::random_tensor(rng, Shape{rows, 416});
      Tensor expected(DType::kF32, Shape{rows, 70});
      matmul_reference(x, weight, bias, expected);
      const Tensor x_device = test::put(context(), x, dtype);
      Tensor y = test::poisoned(context(), expected.shape(), dtype);
      const MatmulTarget target{&prepared, bias_device, y};
      matmul(context(), {x_device, {&target, 1}});
      // Formats that the device does not keep, and floats wider than x, are rounded to bf16.
      const bool exact = dtype == DType::kF32 && GetParam() != DType::kQ5_0;
      EXPECT_LE(test::relative_error(test::take(context(), y), expected), exact ? 2e-6 : 5e-3)
          << rows << " " << name(dtype);
    }
  }
}

// Weights of several pieces of rows, and two of them in one call.
TEST_P(MatmulCuda, RowsOfFewAreTheSameAloneAndTogether) {
  Rng rng(52);
  constexpr int64_t kColumns = 2816;
  const int64_t rows[] = {133, 9};
  std::vector<MatmulWeight> weights;
  for (const int64_t n : rows) {
    weights.push_back(
        prepare_matmul_weight(context(), random_weight(rng, GetParam(), n, kColumns)));
  }
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor x = test::put(context(), test::random_tensor(rng, Shape{8, kColumns}), dtype);
    std::vector<Tensor> together, alone;
    std::vector<MatmulTarget> targets;
    for (size_t t = 0; t < 2; ++t) {
      together.push_back(test::poisoned(context(), Shape{8, rows[t]}));
      alone.push_back(test::poisoned(context(), Shape{8, rows[t]}));
    }
    for (size_t t = 0; t < 2; ++t) targets.push_back({&weights[t], {}, together[t]});
    matmul(context(), {x, targets});
    for (int64_t i = 0; i < 8; ++i) {
      for (size_t t = 0; t < 2; ++t) {
        const MatmulTarget one{&weights[t], {}, alone[t].view().rows(i, 1)};
        matmul(context(), {x.view().rows(i, 1), {&one, 1}});
      }
    }
    for (size_t t = 0; t < 2; ++t) {
      EXPECT_TRUE(test::same_bits(test::take(context(), alone[t]).view(),
                                  test::take(context(), together[t]).view()))
          << name(dtype) << " weight " << t;
    }
  }
}

}  // namespace
}  // namespace spb::ops
