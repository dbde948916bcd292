#include <cstring>

#include "core/block_formats.h"
#include "core/test_cuda.h"
#include "ops/matmul/matmul.h"
#include "ops/test_row_counts.h"

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

// Up to how many rows of x are multiplied in one order of sums: tensor cores of Hopper take all
// formats but these, or what becomes of them.
int64_t few_rows(Context& context, DType weight, DType x) {
  const bool tensor_cores = x == DType::kBF16 && weight != DType::kF32 && weight != DType::kF16;
  return context.stream().is_hopper() && tensor_cores ? 16 : 8;
}

// The last step of columns is cut where the format allows, and the last band of outputs.
TEST_P(MatmulCuda, AgreesWithTheReference) {
  Rng rng(51);
  for (const int64_t columns : {is_float(GetParam()) ? 424 : 416, 64, 2816}) {
    const Tensor weight = random_weight(rng, GetParam(), 70, columns);
    const Tensor bias = test::random_tensor(rng, Shape{70});
    const MatmulWeight prepared = prepare_matmul_weight(context(), weight);
    const Tensor bias_device = test::put(context(), bias);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int64_t rows : {1, 2, 3, 7, 8, 9, 15, 16, 17, 65}) {
        const Tensor x = test::random_tensor(rng, Shape{rows, columns});
        Tensor expected(DType::kF32, Shape{rows, 70});
        matmul_reference(x, weight, bias, expected);
        const Tensor x_device = test::put(context(), x, dtype);
        Tensor y = test::poisoned(context(), expected.shape(), dtype);
        const MatmulTarget target{&prepared, bias_device, y};
        matmul(context(), {x_device, {&target, 1}});
        // Formats that the device does not keep, and floats wider than x, are rounded to bf16.
        const bool exact = dtype == DType::kF32 && GetParam() != DType::kQ5_0;
        EXPECT_LE(test::relative_error(test::take(context(), y), expected), exact ? 2e-6 : 5e-3)
            << rows << " x " << columns << " " << name(dtype);
      }
    }
  }
}

TEST_P(MatmulCuda, AnyNumberOfRows) {
  constexpr int64_t kColumns = 96;
  constexpr int64_t kOutputs = 40;
  Rng rng(58);
  const Tensor weight = random_weight(rng, GetParam(), kOutputs, kColumns);
  const MatmulWeight prepared = prepare_matmul_weight(context(), weight);
  for (const int64_t rows : kAwkwardRows) {
    const Tensor x = test::random_tensor(rng, Shape{rows, kColumns});
    Tensor expected(DType::kF32, Shape{rows, kOutputs});
    matmul_reference(x, weight, {}, expected);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Tensor x_device = test::put(context(), x, dtype);
      Tensor y = test::poisoned(context(), expected.shape(), dtype);
      const MatmulTarget target{&prepared, {}, y};
      matmul(context(), {x_device, {&target, 1}});
      const bool exact = dtype == DType::kF32 && GetParam() != DType::kQ5_0;
      EXPECT_LE(test::relative_error(test::take(context(), y), expected), exact ? 2e-6 : 5e-3)
          << rows << " " << name(dtype);
    }
  }
}

// x in bf16 and few rows: weights are multiplied as they are, or as they were prepared.
TEST_P(MatmulCuda, FewRowsRoundNoWeights) {
  const double tolerance = GetParam() == DType::kQ5_0 ? 5e-3 : 1e-5;
  Rng rng(53);
  constexpr int64_t kColumns = 3584;
  const Tensor weight = random_weight(rng, GetParam(), 99, kColumns);
  const MatmulWeight prepared = prepare_matmul_weight(context(), weight);
  for (const int64_t rows : {int64_t{1}, few_rows(context(), GetParam(), DType::kBF16)}) {
    const Tensor x = test::random_tensor(rng, Shape{rows, kColumns});
    Tensor expected(DType::kF32, Shape{rows, 99});
    matmul_reference(x, weight, {}, expected);
    const Tensor x_device = test::put(context(), x, DType::kBF16);
    Tensor y = test::poisoned(context(), expected.shape());
    const MatmulTarget target{&prepared, {}, y};
    matmul(context(), {x_device, {&target, 1}});
    EXPECT_LE(test::relative_error(test::take(context(), y), expected), tolerance) << rows;
  }
}

// Weights of several pieces of rows, and two of them in one call.
TEST_P(MatmulCuda, RowsOfFewAreTheSameAloneAndTogether) {
  Rng rng(52);
  constexpr int64_t kColumns = 2816;
  constexpr int64_t kOutputs[] = {2133, 9};
  std::vector<MatmulWeight> weights;
  for (const int64_t n : kOutputs) {
    weights.push_back(
        prepare_matmul_weight(context(), random_weight(rng, GetParam(), n, kColumns)));
  }
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const int64_t most = few_rows(context(), GetParam(), dtype);
    const Tensor x = test::put(context(), test::random_tensor(rng, Shape{most, kColumns}), dtype);
    std::vector<Tensor> alone;
    for (size_t t = 0; t < 2; ++t) {
      alone.push_back(test::poisoned(context(), Shape{most, kOutputs[t]}));
      for (int64_t i = 0; i < most; ++i) {
        const MatmulTarget one{&weights[t], {}, alone[t].view().rows(i, 1)};
        matmul(context(), {x.view().rows(i, 1), {&one, 1}});
      }
    }
    for (const int64_t rows : {2, 7, 8, 9, 15, 16}) {
      if (rows > most) break;
      std::vector<Tensor> together;
      for (const int64_t n : kOutputs)
        together.push_back(test::poisoned(context(), Shape{rows, n}));
      const MatmulTarget targets[] = {{&weights[0], {}, together[0]},
                                      {&weights[1], {}, together[1]}};
      matmul(context(), {x.view().rows(most - rows, rows), targets});
      for (size_t t = 0; t < 2; ++t) {
        const Tensor expected = test::take(context(), alone[t].view().rows(most - rows, rows));
        EXPECT_TRUE(test::same_bits(expected.view(), test::take(context(), together[t]).view()))
            << rows << " " << name(dtype) << " weight " << t;
      }
    }
  }
}

using MatmulBlocksCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Formats, MatmulBlocksCuda,
                         testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_1),
                         test::dtype_name);

// Blocks of any codes, with the scale 1 / 256 and, where there is one, the minimum -3 / 256.
Tensor random_blocks(Rng& rng, DType dtype, int64_t rows, int64_t columns) {
  constexpr uint16_t kScale = 0x1c00;
  constexpr uint16_t kMinimum = 0xa200;
  Tensor weight(dtype, Shape{rows, columns});
  for (int64_t i = 0; i < rows * columns / 32; ++i) {
    std::byte* block = weight.view().data() + i * block_bytes(dtype);
    for (int64_t b = 0; b < block_bytes(dtype); ++b) {
      block[b] = static_cast<std::byte>(rng.below(256));
    }
    std::memcpy(block, &kScale, 2);
    if (dtype == DType::kQ4_1) std::memcpy(block + 2, &kMinimum, 2);
  }
  return weight;
}

// Last bands of 1 to 15 rows, half a tile of columns, columns for some of the warps only, and more
// of x than shared memory holds.
TEST_P(MatmulBlocksCuda, EveryCodeInAwkwardShapes) {
  Rng rng(54);
  constexpr int64_t kShapes[][2] = {{1, 32},   {7, 64},     {63, 96},   {17, 576},
                                    {1, 3584}, {4097, 576}, {65, 1536}, {33, 18944}};
  for (const auto& [outputs, columns] : kShapes) {
    const Tensor weight = random_blocks(rng, GetParam(), outputs, columns);
    const MatmulWeight prepared = prepare_matmul_weight(context(), weight);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int64_t rows : {1, 2, 3, 5, 6, 8, 9, 16}) {
        const Tensor x = test::random_tensor(rng, Shape{rows, columns});
        Tensor expected(DType::kF32, Shape{rows, outputs});
        matmul_reference(x, weight, {}, expected);
        const Tensor x_device = test::put(context(), x, dtype);
        Tensor y = test::poisoned(context(), expected.shape());
        const MatmulTarget target{&prepared, {}, y};
        matmul(context(), {x_device, {&target, 1}});
        const bool exact = rows <= few_rows(context(), GetParam(), dtype) || dtype == DType::kF32;
        EXPECT_LE(test::relative_error(test::take(context(), y), expected), exact ? 5e-6 : 5e-3)
            << outputs << " x " << columns << " by " << rows << " " << name(dtype);
      }
    }
  }
}

// Of x in f32 times a weight on the device.
double error_of(Context& context, const Tensor& weight, const MatmulWeight& prepared,
                const Tensor& x) {
  Tensor expected(DType::kF32, Shape{x.shape()[0], weight.shape()[0]});
  matmul_reference(x, weight, {}, expected);
  const Tensor x_device = test::put(context, x);
  Tensor y = test::poisoned(context, expected.shape());
  const MatmulTarget target{&prepared, {}, y};
  matmul(context, {x_device, {&target, 1}});
  return test::relative_error(test::take(context, y), expected);
}

// f32 has more bits than bf16, and all of them count.
TEST_P(MatmulBlocksCuda, TakesEveryBitOfF32) {
  Rng rng(55);
  constexpr int64_t kColumns = 1536;
  const Tensor weight = random_weight(rng, GetParam(), 40, kColumns);
  const MatmulWeight prepared = prepare_matmul_weight(context(), weight);
  for (const int64_t rows : {1, 4, 8}) {
    Tensor x(DType::kF32, Shape{rows, kColumns});
    for (int64_t i = 0; i < rows * kColumns; ++i) x.as<float>()[i] = rng.normal();
    EXPECT_LE(error_of(context(), weight, prepared, x), 2e-6) << rows;
  }
}

// The layout that products of experts read serves here too.
TEST_P(MatmulBlocksCuda, AgreesWithoutRepacking) {
  Rng rng(56);
  constexpr int64_t kColumns = 224;
  const Tensor weight = random_weight(rng, GetParam(), 37, kColumns);
  const MatmulWeight prepared = prepare_matmul_weight(context(), weight, false);
  for (const int64_t rows : {1, 8, 20}) {
    const Tensor x = test::random_tensor(rng, Shape{rows, kColumns});
    EXPECT_LE(error_of(context(), weight, prepared, x), 2e-6) << rows;
  }
}

// What is not finite stays in its row, though rows share products, and columns end inside a tile.
TEST_P(MatmulBlocksCuda, InfinityStaysInItsRow) {
  Rng rng(57);
  constexpr int64_t kColumns = 96;
  const MatmulWeight prepared =
      prepare_matmul_weight(context(), random_weight(rng, GetParam(), 21, kColumns));
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Tensor x = test::random_tensor(rng, Shape{3, kColumns});
    std::vector<Tensor> results;
    for (const float last : {1.0f, std::numeric_limits<float>::infinity()}) {
      x.as<float>()[2 * kColumns - 1] = last;
      const Tensor x_device = test::put(context(), x, dtype);
      Tensor y = test::poisoned(context(), Shape{3, 21});
      const MatmulTarget target{&prepared, {}, y};
      matmul(context(), {x_device, {&target, 1}});
      results.push_back(test::take(context(), y));
    }
    for (const int64_t row : {0, 2}) {
      EXPECT_TRUE(test::same_bits(results[0].view().rows(row, 1), results[1].view().rows(row, 1)));
    }
    for (int64_t n = 0; n < 21; ++n) EXPECT_FALSE(std::isfinite(results[1].as<float>()[21 + n]));
  }
}

}  // namespace
}  // namespace spb::ops
