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
    Tensor keys = test::random_tensor(rng, Shape{5, 2, 128});
    Tensor x_device = test::put(context(), x, GetParam());
    Tensor keys_device = test::put(context(), keys, GetParam());
    rope_reference({x, positions, {}, 1e6, pairs, keys});
    rope(context(), {x_device, positions, {}, 1e6, pairs, keys_device});
    EXPECT_LE(test::relative_error(test::take(context(), x_device), x),
              test::tolerance(GetParam()));
    EXPECT_LE(test::relative_error(test::take(context(), keys_device), keys),
              test::tolerance(GetParam()));
  }
}

// Positions of many tokens take another way to the device.
TEST_P(RopeCuda, AgreesWithTheReferenceForManyTokens) {
  Rng rng(33);
  Tensor x = test::random_tensor(rng, Shape{130, 3, 64});
  std::vector<int64_t> positions(130);
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int64_t>(i) + 1000;
  Tensor x_device = test::put(context(), x, GetParam());
  rope_reference({x, positions, {}, 1e4});
  rope(context(), {x_device, positions, {}, 1e4});
  EXPECT_LE(test::relative_error(test::take(context(), x_device), x), test::tolerance(GetParam()));
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
