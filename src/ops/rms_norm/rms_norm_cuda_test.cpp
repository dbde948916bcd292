#include "core/test_cuda.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/test_row_counts.h"

namespace spb::ops {
namespace {

class RmsNormCuda : public test::OnCuda {
 protected:
  // Of the part of x that `part` takes, with a residual or without.
  template <typename Part>
  void expect_agreement(Rng& rng, const Tensor& x, const Shape& shape, bool residual, Part part) {
    Tensor h = test::random_tensor(rng, shape);
    const Tensor weight = test::random_tensor(rng, Shape{shape.last()});
    Tensor expected(DType::kF32, shape);
    const Tensor x_device = test::put(context(), x, GetParam());
    Tensor h_device = test::put(context(), h);
    const Tensor weight_device = test::put(context(), weight);
    Tensor y = test::poisoned(context(), shape, GetParam());
    const TensorView none;
    rms_norm_reference({part(x), residual ? h.view() : none, weight, expected, 1e-5f});
    rms_norm(context(),
             {part(x_device), residual ? h_device.view() : none, weight_device, y, 1e-5f});
    EXPECT_LE(test::relative_error(test::take(context(), y), expected), test::tolerance(GetParam()))
        << shape.to_string();
    EXPECT_LE(test::relative_error(test::take(context(), h_device), h), 1e-7) << shape.to_string();
  }
};

INSTANTIATE_TEST_SUITE_P(Dtypes, RmsNormCuda, test::activation_dtypes(), test::dtype_name);

TEST_P(RmsNormCuda, AgreesWithTheReference) {
  Rng rng(11);
  for (const int64_t columns : {1, 7, 64, 128, 500, 513, 3584, 12800}) {
    for (const bool residual : {false, true}) {
      const Shape shape{1 + rng.below(70), columns};
      const Tensor x = test::random_tensor(rng, shape, 3.0f);
      expect_agreement(rng, x, shape, residual,
                       [](const Tensor& all) { return ConstTensorView(all); });
    }
  }
}

TEST_P(RmsNormCuda, AddsToWhatIsThere) {
  Rng rng(12);
  const Shape shape{9, 128};
  const Tensor x = test::random_tensor(rng, shape);
  const Tensor weight = test::random_tensor(rng, Shape{128});
  Tensor y = test::random_tensor(rng, shape);
  const Tensor x_device = test::put(context(), x, GetParam());
  const Tensor weight_device = test::put(context(), weight);
  Tensor y_device = test::put(context(), y, GetParam());
  rms_norm_reference({x, {}, weight, y, 1e-5f, true});
  rms_norm(context(), {x_device, {}, weight_device, y_device, 1e-5f, true});
  EXPECT_LE(test::relative_error(test::take(context(), y_device), y), test::tolerance(GetParam()));
}

// As the stream that layers of a model add to, when activations are bf16.
TEST_P(RmsNormCuda, KeepsTheResidualInItsDtype) {
  Rng rng(13);
  for (const int64_t columns : {60, 512, 3584}) {
    const Shape shape{5, columns};
    const Tensor x = test::random_tensor(rng, shape);
    Tensor h = test::random_tensor(rng, shape);
    const Tensor weight = test::random_tensor(rng, Shape{columns});
    Tensor expected(DType::kF32, shape);
    const Tensor x_device = test::put(context(), x, GetParam());
    Tensor h_device = test::put(context(), h, DType::kBF16);
    const Tensor weight_device = test::put(context(), weight);
    Tensor y = test::poisoned(context(), shape, GetParam());
    rms_norm(context(), {x_device, h_device, weight_device, y, 1e-5f});
    rms_norm_reference({x, h, weight, expected, 1e-5f});
    constexpr double kRounding = 1.0 / 256;  // of bf16, relative
    const Tensor sums = test::take(context(), h_device);
    EXPECT_LE(test::relative_error(sums, h), kRounding) << columns;
    // The norm is that of the rounded sums.
    rms_norm_reference({sums, {}, weight, expected, 1e-5f});
    EXPECT_LE(test::relative_error(test::take(context(), y), expected), test::tolerance(GetParam()))
        << columns;
  }
}

// Rows that lie among others, as the columns of one product of several weights.
TEST_P(RmsNormCuda, AnyNumberOfRowsAmongOthers) {
  Rng rng(14);
  for (const int64_t rows : kAwkwardRows) {
    for (const int64_t columns : {7, 24}) {
      const Tensor wide = test::random_tensor(rng, Shape{rows, 3 * columns}, 3.0f);
      const Shape shape{rows, columns};
      expect_agreement(rng, wide, shape, true, [&](const Tensor& all) {
        return ConstTensorView(all.view().data() + row_bytes(all.dtype(), columns), all.dtype(),
                               shape, all.view().row_stride_bytes());
      });
    }
  }
}

}  // namespace
}  // namespace spb::ops
