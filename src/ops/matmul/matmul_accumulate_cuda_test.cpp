// matmul with accumulate on a CUDA device: y is rounded once.
#include "core/test_cuda.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_test_weights.h"

namespace spb::ops {
namespace {

using MatmulAccumulateCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Formats, MatmulAccumulateCuda, ::testing::ValuesIn(kWeightDTypes),
                         test::dtype_name);

constexpr int64_t kMostFewRows = 8;
constexpr int64_t kOutputs = 83;

// What a call writes without accumulate, in f32.
Tensor written(Context& context, ConstTensorView x, const MatmulTarget& target) {
  Tensor y = test::poisoned(context, target.y.shape());
  const MatmulTarget plain{target.weight, target.bias, y};
  matmul(context, {x, {&plain, 1}});
  return test::take(context, y);
}

// before + plain in f32, as the dtype of y holds it.
Tensor sum_of(ConstTensorView before, ConstTensorView plain, DType dtype) {
  Tensor sum(DType::kF32, before.shape());
  for (int64_t i = 0; i < before.shape().elements(); ++i) {
    const float value = before.as<float>()[i] + plain.as<float>()[i];
    sum.as<float>()[i] = dtype == DType::kF32 ? value : to_float(to_bf16(value));
  }
  return sum;
}

// In f32, in bf16, and f32 from bf16.
struct Types {
  DType x, y;
};
constexpr Types kTypes[] = {
    {DType::kF32, DType::kF32}, {DType::kBF16, DType::kBF16}, {DType::kBF16, DType::kF32}};

// Kernels of few rows form the same sum whatever becomes of it; cuBLASLt may choose another order.
void expect_sum(const Tensor& y, const Tensor& want, int64_t rows, const std::string& what) {
  if (rows <= kMostFewRows) {
    EXPECT_TRUE(test::same_bits(y.view(), want.view())) << what;
  } else {
    EXPECT_LE(test::relative_error(y, want), 4e-3) << what;
  }
}

TEST_P(MatmulAccumulateCuda, AddsOnceWhatIsWrittenWithoutIt) {
  Rng rng(61);
  for (const int64_t columns : {256, 2816}) {
    const Weights w(rng, GetParam(), kOutputs, columns);
    const MatmulWeight weight = prepare_matmul_weight(context(), w.view());
    const Tensor bias = test::put(context(), test::random_tensor(rng, Shape{kOutputs}));
    for (const auto [x_dtype, y_dtype] : kTypes) {
      for (const int64_t rows : {1, 3, 8, 16, 17, 130}) {
        const std::string what =
            fmt::format("{} x {} x {}, y {}", rows, columns, name(x_dtype), name(y_dtype));
        const Tensor x =
            test::put(context(), test::random_tensor(rng, Shape{rows, columns}), x_dtype);
        const Tensor before = test::random_tensor(rng, Shape{rows, kOutputs}, 100.0f);
        Tensor y = test::put(context(), before, y_dtype);
        const ConstTensorView added = rows % 2 == 0 ? ConstTensorView(bias) : ConstTensorView();
        const MatmulTarget target{&weight, added, y, true};
        const Tensor want = sum_of(before, written(context(), x, target), y_dtype);
        matmul(context(), {x, {&target, 1}});
        expect_sum(test::take(context(), y), want, rows, what);
      }
    }
  }
}

// The same shape with and without accumulate, again and again: neither takes the other's plan.
TEST_P(MatmulAccumulateCuda, TakesTurnsWithOverwriting) {
  Rng rng(62);
  constexpr int64_t kColumns = 256;
  const Weights w(rng, GetParam(), kOutputs, kColumns);
  const MatmulWeight weight = prepare_matmul_weight(context(), w.view());
  for (const int64_t rows : {8, 17, 64}) {
    const Tensor x =
        test::put(context(), test::random_tensor(rng, Shape{rows, kColumns}), DType::kBF16);
    const Tensor before = test::random_tensor(rng, Shape{rows, kOutputs}, 100.0f);
    Tensor sum = test::put(context(), before, DType::kBF16);
    Tensor plain = test::poisoned(context(), before.shape(), DType::kBF16);
    const MatmulTarget adds{&weight, {}, sum, true};
    const MatmulTarget overwrites{&weight, {}, plain};
    for (int turn = 0; turn < 3; ++turn) {
      matmul(context(), {x, {&adds, 1}});
      matmul(context(), {x, {&overwrites, 1}});
    }
    const Tensor once = test::take(context(), plain);
    Tensor expected(DType::kF32, before.shape());
    for (int64_t i = 0; i < before.shape().elements(); ++i) {
      expected.as<float>()[i] = before.as<float>()[i] + 3 * once.as<float>()[i];
    }
    EXPECT_LE(test::relative_error(test::take(context(), sum), expected), 8e-3) << rows;
  }
}

// One target adds, the other overwrites.
TEST_P(MatmulAccumulateCuda, TargetsOfOneCallDiffer) {
  Rng rng(63);
  constexpr int64_t kColumns = 512;
  const Weights w(rng, GetParam(), kOutputs, kColumns);
  const MatmulWeight weight = prepare_matmul_weight(context(), w.view());
  const Tensor before = test::random_tensor(rng, Shape{5, kOutputs}, 100.0f);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor x = test::put(context(), test::random_tensor(rng, Shape{5, kColumns}), dtype);
    Tensor sum = test::put(context(), before);
    Tensor plain = test::poisoned(context(), before.shape());
    const MatmulTarget targets[] = {{&weight, {}, sum, true}, {&weight, {}, plain}};
    matmul(context(), {x, targets});
    const Tensor want = sum_of(before, test::take(context(), plain), DType::kF32);
    EXPECT_TRUE(test::same_bits(test::take(context(), sum).view(), want.view())) << name(dtype);
  }
}

}  // namespace
}  // namespace spb::ops
