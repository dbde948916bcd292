#include "core/test_cuda.h"
#include "ops/swiglu/swiglu.h"

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

}  // namespace
}  // namespace spb::ops
