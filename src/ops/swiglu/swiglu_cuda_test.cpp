#include "core/test_cuda.h"
#include "ops/swiglu/swiglu.h"
#include "ops/test_row_counts.h"

namespace spb::ops {
namespace {

using SwigluCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Dtypes, SwigluCuda, test::activation_dtypes(), test::dtype_name);

TEST_P(SwigluCuda, AgreesWithTheReference) {
  Rng rng(21);
  for (const Shape& shape : {Shape{1, 1}, Shape{3, 63}, Shape{65, 576}, Shape{7, 18944}}) {
    Tensor gate = test::random_tensor(rng, shape, 4.0f);
    gate.as<float>()[0] = -std::numeric_limits<float>::infinity();
    const Tensor up = test::random_tensor(rng, shape);
    Tensor expected(DType::kF32, shape);
    swiglu_reference({gate, up, expected});
    const Tensor gate_device = test::put(context(), gate, GetParam());
    const Tensor up_device = test::put(context(), up, GetParam());
    Tensor y = test::poisoned(context(), shape, GetParam());
    swiglu(context(), {gate_device, up_device, y});
    EXPECT_LE(test::relative_error(test::take(context(), y), expected),
              test::tolerance(GetParam()));
  }
}

// Columns from `first` on of a matrix.
template <typename View>
View columns_of(View all, int64_t first, int64_t count) {
  return View(all.data() + row_bytes(all.dtype(), first), all.dtype(), Shape{all.shape()[0], count},
              all.row_stride_bytes());
}

// Gate and up in one matrix, as one product may leave them; widths that fit packs and others.
TEST_P(SwigluCuda, AnyNumberOfRowsSideBySide) {
  Rng rng(22);
  for (const int64_t rows : kAwkwardRows) {
    for (const int64_t columns : {7, 24}) {
      const Tensor both = test::random_tensor(rng, Shape{rows, 2 * columns}, 4.0f);
      Tensor expected(DType::kF32, Shape{rows, columns});
      swiglu_reference({columns_of(both.view(), 0, columns),
                        columns_of(both.view(), columns, columns), expected});
      const Tensor device = test::put(context(), both, GetParam());
      const ConstTensorView gate = columns_of(device.view(), 0, columns);
      const ConstTensorView up = columns_of(device.view(), columns, columns);
      Tensor y = test::poisoned(context(), expected.shape(), GetParam());
      swiglu(context(), {gate, up, y});
      EXPECT_LE(test::relative_error(test::take(context(), y), expected),
                test::tolerance(GetParam()))
          << rows << " x " << columns;
    }
  }
}

}  // namespace
}  // namespace spb::ops
