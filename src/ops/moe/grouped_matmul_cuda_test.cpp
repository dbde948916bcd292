#include <cstring>

#include "core/block_formats.h"
#include "core/test_cuda.h"
#include "ops/moe/moe_cuda.h"
#include "ops/test_row_counts.h"

namespace spb::ops {
namespace {

constexpr DType kFormats[] = {DType::kF32,  DType::kF16,  DType::kBF16,
                              DType::kQ8_0, DType::kQ4_0, DType::kQ4_1};

// Random weights of experts, stacked, and their values.
struct Stack {
  Stack(Context& context, Rng& rng, DType dtype, const Shape& shape)
      : host(dtype, shape), values(DType::kF32, shape) {
    for (int64_t i = 0; i < shape.rows(); ++i) {
      float* row = values.as<float>() + i * shape.last();
      for (int64_t c = 0; c < shape.last(); ++c) row[c] = rng.normal();
      quantize_row(dtype, row, host.view().row(i), shape.last());
      dequantize_row(dtype, host.view().row(i), row, shape.last());
    }
    prepared = prepare_expert_weights(context, host, true);
    for (const MatmulWeight& weight : prepared) weights.push_back(&weight);
  }
  int64_t outputs() const { return host.shape()[1]; }

  Tensor host;
  Tensor values;
  std::vector<MatmulWeight> prepared;
  std::vector<const MatmulWeight*> weights;
};

std::vector<int64_t> offsets_of(const std::vector<int64_t>& loads) {
  std::vector<int64_t> offsets = {0};
  for (const int64_t load : loads) offsets.push_back(offsets.back() + load);
  return offsets;
}

std::vector<int64_t> random_loads(Rng& rng, int64_t experts, int64_t rows) {
  std::vector<int64_t> loads(static_cast<size_t>(experts));
  for (int64_t i = 0; i < rows; ++i) ++loads[static_cast<size_t>(rng.below(experts))];
  return loads;
}

float dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<float>(sum);
}

// In double; rows behind the last expert's are left as they are.
void reference(const Stack& stack, ConstTensorView x, const std::vector<int64_t>& offsets,
               Tensor& y) {
  const int64_t columns = stack.values.shape()[2];
  const float* w = stack.values.as<float>();
  for (size_t e = 0; e + 1 < offsets.size(); ++e, w += stack.outputs() * columns) {
    for (int64_t i = offsets[e]; i < offsets[e + 1]; ++i) {
      for (int64_t n = 0; n < stack.outputs(); ++n) {
        y.view().row_as<float>(i)[n] = dot(x.row_as<float>(i), w + n * columns, columns);
      }
    }
  }
}

class GroupedMatmulCuda : public test::OnCuda {
 protected:
  // y of `rows` rows, poisoned before; those behind the last expert's must stay so.
  Tensor multiply(const Stack& stack, const Tensor& x, const std::vector<int64_t>& offsets,
                  bool warpgroups = true) {
    Tensor device_offsets(DType::kI64, Shape{static_cast<int64_t>(offsets.size())});
    std::copy(offsets.begin(), offsets.end(), device_offsets.as<int64_t>());
    device_offsets = to_device(context(), device_offsets);
    const Tensor device_x = test::put(context(), x, GetParam());
    Tensor y = test::poisoned(context(), Shape{x.shape()[0], stack.outputs()}, GetParam());
    const GroupedMatmulTarget target{stack.weights, y};
    grouped_matmul_cuda(context(),
                        {device_x, {device_offsets.as<int64_t>(), offsets.size()}, {&target, 1}},
                        warpgroups);
    return test::take(context(), y);
  }

  void expect_agreement(const Stack& stack, const std::vector<int64_t>& loads,
                        bool warpgroups = true) {
    constexpr int64_t kPadding = 3;
    const std::vector<int64_t> offsets = offsets_of(loads);
    const int64_t rows = offsets.back();
    const Tensor x = test::random_tensor(rng_, Shape{rows + kPadding, stack.values.shape().last()});
    Tensor want(DType::kF32, Shape{rows, stack.outputs()});
    reference(stack, x, offsets, want);
    const Tensor y = multiply(stack, x, offsets, warpgroups);
    // A weight that is no bf16 is rounded to it where tensor cores multiply.
    const double tolerance = GetParam() == DType::kF32 ? 2e-6 : 6e-3;
    EXPECT_LE(test::relative_error(y, want), tolerance)
        << name(stack.host.dtype()) << ", " << rows << " rows of " << loads.size() << " experts";
    for (int64_t i = rows; i < rows + kPadding; ++i) {
      for (int64_t n = 0; n < stack.outputs(); ++n) {
        ASSERT_TRUE(std::isnan(y.view().row_as<float>(i)[n])) << i;
      }
    }
  }

  Rng rng_{11};
};
INSTANTIATE_TEST_SUITE_P(Dtypes, GroupedMatmulCuda, test::activation_dtypes(), test::dtype_name);

TEST_P(GroupedMatmulCuda, AgreesWithTheReferenceInEveryFormat) {
  for (const DType dtype : kFormats) {
    const Stack stack(context(), rng_, dtype, Shape{8, 200, 160});
    expect_agreement(stack, {0, 1, 0, 0, 0, 0, 0, 0});
    expect_agreement(stack, {0, 1, 5, 0, 40, 9, 0, 2});
    expect_agreement(stack, {0, 0, 0, 61, 0, 0, 0, 0});
    expect_agreement(stack, {0, 1, 5, 0, 40, 17, 0, 2});
    expect_agreement(stack, {129, 128, 127, 0, 256, 1, 0, 300});
  }
}

TEST_P(GroupedMatmulCuda, AgreesForAwkwardSizes) {
  for (const Shape& shape : {Shape{1, 1, 8}, Shape{1, 65, 72}, Shape{2, 1000, 24}}) {
    const Stack stack(context(), rng_, DType::kBF16, shape);
    for (const int64_t rows : {1, 63, 65, 1000}) {
      expect_agreement(stack, random_loads(rng_, shape[0], rows));
    }
  }
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ4_0}) {
    const Stack many(context(), rng_, dtype, Shape{128, 40, 96});
    for (const int64_t rows : {1, 8, 64, 65, 1000}) {
      expect_agreement(many, random_loads(rng_, 128, rows));
    }
  }
}

// Several bands of tiles, blocks that take more than one, outputs that suit the tall tile.
TEST_P(GroupedMatmulCuda, AgreesForManyRows) {
  const Stack stack(context(), rng_, DType::kBF16, Shape{3, 392, 136});
  expect_agreement(stack, {1500, 1, 700});
  expect_agreement(stack, {0, 3000, 0});
  const Stack wide(context(), rng_, DType::kBF16, Shape{2, 2600, 64});
  expect_agreement(wide, {130, 1300});
}

TEST_P(GroupedMatmulCuda, AnyNumberOfRows) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
    const Stack stack(context(), rng_, dtype, Shape{5, 40, 96});
    for (const int64_t rows : kAwkwardRows) {
      expect_agreement(stack, random_loads(rng_, 5, rows));
      expect_agreement(stack, {0, 0, rows, 0, 0});
    }
  }
}

TEST_P(GroupedMatmulCuda, AgreesOnCardsWithoutWarpgroups) {
  const Stack stack(context(), rng_, DType::kBF16, Shape{4, 200, 168});
  expect_agreement(stack, {0, 65, 0, 1}, false);
  expect_agreement(stack, {129, 128, 700, 256}, false);
  const Stack codes(context(), rng_, DType::kQ8_0, Shape{4, 130, 96});
  expect_agreement(codes, {1, 100, 0, 33}, false);
}

void expect_same_bits(const Tensor& a, int64_t row, const Tensor& b, int64_t other) {
  const size_t bytes = static_cast<size_t>(a.view().row_bytes_used());
  EXPECT_EQ(std::memcmp(a.view().row(row), b.view().row(other), bytes), 0) << row;
}

// Every row of a group gives what it gives as the only one, where the path is the same.
TEST_P(GroupedMatmulCuda, RowsDoNotDependOnEachOther) {
  for (const DType dtype : kFormats) {
    const Stack stack(context(), rng_, dtype, Shape{3, 70, 192});
    const Tensor x = test::random_tensor(rng_, Shape{20, 192});
    const Tensor together = multiply(stack, x, {0, 7, 7, 20});
    for (int64_t row = 0; row < 20; ++row) {
      Tensor one(DType::kF32, Shape{1, 192});
      std::copy_n(x.as<float>() + row * 192, 192, one.as<float>());
      const std::vector<int64_t> offsets =
          row < 7 ? std::vector<int64_t>{0, 1, 1, 1} : std::vector<int64_t>{0, 0, 0, 1};
      expect_same_bits(together, row, multiply(stack, one, offsets), 0);
    }
    const Tensor many = test::random_tensor(rng_, Shape{300, 192});
    const Tensor all = multiply(stack, many, {0, 100, 100, 300});
    Tensor last(DType::kF32, Shape{100, 192});
    std::copy_n(many.as<float>() + 200 * 192, 100 * 192, last.as<float>());
    const Tensor alone = multiply(stack, last, {0, 0, 0, 100});
    for (int64_t row = 0; row < 100; ++row) expect_same_bits(all, 200 + row, alone, row);
  }
}

// Gate and up in one call, of different formats.
TEST_P(GroupedMatmulCuda, TargetsShareTheirRows) {
  const Stack gate(context(), rng_, DType::kQ8_0, Shape{2, 48, 64});
  const Stack up(context(), rng_, DType::kBF16, Shape{2, 40, 64});
  for (const int64_t rows : {2, 90}) {
    const std::vector<int64_t> offsets = {0, 1, rows};
    Tensor device_offsets(DType::kI64, Shape{3});
    std::copy(offsets.begin(), offsets.end(), device_offsets.as<int64_t>());
    device_offsets = to_device(context(), device_offsets);
    const Tensor x = test::random_tensor(rng_, Shape{rows, 64});
    const Tensor device_x = test::put(context(), x, GetParam());
    Tensor y1 = test::poisoned(context(), Shape{rows, 48}, GetParam());
    Tensor y2 = test::poisoned(context(), Shape{rows, 40}, GetParam());
    const GroupedMatmulTarget targets[] = {{gate.weights, y1}, {up.weights, y2}};
    grouped_matmul(context(), {device_x, {device_offsets.as<int64_t>(), 3}, targets});
    for (int64_t row = 0; row < rows; ++row) {
      expect_same_bits(test::take(context(), y1), row, multiply(gate, x, offsets), row);
      expect_same_bits(test::take(context(), y2), row, multiply(up, x, offsets), row);
      if (rows > 2) row += 40;
    }
  }
}

TEST_P(GroupedMatmulCuda, RefusesWhatDoesNotFit) {
  const Stack stack(context(), rng_, DType::kBF16, Shape{2, 16, 64});
  Tensor offsets(DType::kI64, Shape{4}, context().device());
  const Tensor x = test::poisoned(context(), Shape{3, 64}, GetParam());
  Tensor y = test::poisoned(context(), Shape{3, 16}, GetParam());
  const auto call = [&](size_t count, TensorView out) {
    const GroupedMatmulTarget target{stack.weights, out};
    grouped_matmul(context(), {x, {offsets.as<int64_t>(), count}, {&target, 1}});
  };
  EXPECT_NO_THROW(call(3, y));
  EXPECT_THROW(call(4, y), Error);
  EXPECT_THROW(call(3, y.view().rows(0, 2)), Error);
  EXPECT_THROW(call(0, y), Error);
}

}  // namespace
}  // namespace spb::ops
