#include "core/test_cuda.h"
#include "ops/rope/rope.h"

namespace spb::ops {
namespace {

using RopeCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Dtypes, RopeCuda, test::activation_dtypes(), test::dtype_name);

TEST_P(RopeCuda, AgreesWithTheReferenceFarOut) {
  Rng rng(31);
  for (const RopePairs pairs : {RopePairs::kHalf, RopePairs::kInterleaved}) {
    const Shape shape{5, 7, 128};
    Tensor x = test::random_tensor(rng, shape);
    const std::vector<int64_t> positions = {0, 1, 4095, 1 << 20, 1 << 24};
    Tensor x_device = test::put(context(), x, GetParam());
    rope_reference({x, positions, {}, 1e6, pairs});
    rope(context(), {x_device, positions, {}, 1e6, pairs});
    EXPECT_LE(test::relative_error(test::take(context(), x_device), x),
              test::tolerance(GetParam()));
  }
}

TEST_P(RopeCuda, DividesByFactors) {
  Rng rng(32);
  Tensor x = test::random_tensor(rng, Shape{3, 2, 64});
  const std::vector<int64_t> positions = {3, 77, 12345};
  const std::vector<float> values = llama3_rope_factors({}, 5e5, 64);
  Tensor factors(DType::kF32, Shape{32});
  std::copy(values.begin(), values.end(), factors.as<float>());
  Tensor x_device = test::put(context(), x, GetParam());
  const Tensor factors_device = test::put(context(), factors);
  rope_reference({x, positions, factors, 5e5});
  rope(context(), {x_device, positions, factors_device, 5e5});
  EXPECT_LE(test::relative_error(test::take(context(), x_device), x), test::tolerance(GetParam()));
}

}  // namespace
}  // namespace spb::ops
