#include "ops/matmul/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/block_formats.h"
#include "core/buffer.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/rng.h"
#include "ops/matmul/matmul_test_weights.h"

namespace spb::ops {
namespace {

// Restores the instruction set that a test restricts.
class MatmulTest : public ::testing::TestWithParam<DType> {
 protected:
  ~MatmulTest() override { limit_isa(detect_isa()); }

  static std::vector<Isa> levels() {
    std::vector<Isa> all;
    for (Isa level : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
      if (level <= detect_isa()) all.push_back(level);
    }
    return all;
  }
};

Tensor random_tensor(Rng& rng, int64_t rows, int64_t columns, float scale = 1.0f) {
  Tensor t(DType::kF32, Shape{rows, columns});
  for (int64_t i = 0; i < rows * columns; ++i) t.as<float>()[i] = scale * rng.normal();
  return t;
}

Tensor poisoned(int64_t rows, int64_t columns) {
  Tensor t(DType::kF32, Shape{rows, columns});
  std::fill_n(t.as<float>(), rows * columns, std::numeric_limits<float>::quiet_NaN());
  return t;
}

// Tolerances, relative to the norm of a row of x times the norm of a row of W: f32 arithmetic
// alone; x and W rounded to bf16; x rounded to 1/127 of the largest of 32.
constexpr double kFloatTolerance = 1e-6;
constexpr double kBf16Tolerance = 3e-3;
constexpr double kInt8Tolerance = 1e-2;

double tolerance(DType dtype) {
  if (dtype == DType::kF32) return kFloatTolerance;
  return is_float(dtype) ? kBf16Tolerance : kInt8Tolerance;
}

double norm(const float* v, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(v[i]) * static_cast<double>(v[i]);
  return std::sqrt(sum);
}

void expect_close(const Tensor& y, const Tensor& reference, const Tensor& x,
                  const ConstTensorView& w, double bound, const std::string& what) {
  const int64_t columns = w.shape().last();
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t n = 0; n < w.shape()[0]; ++n) {
    dequantize_row(w.dtype(), w.row(n), row.data(), columns);
    const double w_norm = norm(row.data(), columns);
    for (int64_t i = 0; i < x.shape()[0]; ++i) {
      const double got = static_cast<double>(y.view().row_as<float>(i)[n]);
      const double want = static_cast<double>(reference.view().row_as<float>(i)[n]);
      const double scale = w_norm * norm(x.view().row_as<float>(i), columns);
      ASSERT_LE(std::fabs(got - want), bound * scale + 1e-6 * std::fabs(want))
          << what << " at [" << i << ", " << n << "]: " << got << " for " << want;
    }
  }
}

// What the int8 path multiplies: x as 32 elements share one scale.
Tensor rounded_to_int8(const Tensor& x) {
  Tensor out(DType::kF32, x.shape());
  const int64_t count = x.shape().elements();
  for (int64_t k = 0; k < count; k += 32) {
    const float* in = x.as<float>() + k;
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(in[i]));
    const float d = largest / 127.0f;
    const float inverse = d > 0 ? 1.0f / d : 0.0f;
    for (int i = 0; i < 32; ++i) out.as<float>()[k + i] = d * std::nearbyint(in[i] * inverse);
  }
  return out;
}

struct Case {
  int64_t m, n, k;  // k counts blocks of 32, or of 256 for K-blocks
};
constexpr Case kCases[] = {{1, 1, 1},  {1, 16, 3},  {2, 17, 2},  {3, 33, 5},  {7, 47, 1},
                           {8, 64, 2}, {13, 31, 3}, {17, 40, 4}, {33, 70, 3}, {65, 97, 2}};

int64_t columns_of(DType dtype, const Case& c) {
  if (is_float(dtype)) return 32 * c.k - 3 * (c.n % 3);  // odd lengths as well
  return std::max<int64_t>(32, block_elements(dtype)) * c.k;
}

std::string label(DType dtype, Isa level, const Case& c) {
  return fmt::format("{} {} M {} N {} K {}", name(dtype), name(level), c.m, c.n,
                     columns_of(dtype, c));
}

TEST_P(MatmulTest, AgreesWithTheReferenceOnEveryInstructionSet) {
  const DType dtype = GetParam();
  Rng rng(7);
  Context context(2);
  for (const Case& c : kCases) {
    const int64_t k = columns_of(dtype, c);
    const Weights w(rng, dtype, c.n, k);
    const Tensor x = random_tensor(rng, c.m, k);
    Tensor reference = poisoned(c.m, c.n);
    matmul_reference(x, w.view(), {}, reference);
    for (Isa level : levels()) {
      limit_isa(level);
      for (bool repack : {true, false}) {
        Tensor y = poisoned(c.m, c.n);
        const MatmulWeight weight = prepare_matmul_weight(context, w.view(), repack);
        const MatmulTarget target{&weight, {}, y};
        matmul(context, {x, {&target, 1}});
        expect_close(y, reference, x, w.view(), tolerance(dtype), label(dtype, level, c));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// The int8 path is exact but for f32 rounding once x is what it rounds x to.
TEST_P(MatmulTest, FewRowsMultiplyQuantizedInputsExactly) {
  const DType dtype = GetParam();
  if (is_float(dtype)) GTEST_SKIP() << "float weights take x as it is";
  Rng rng(8);
  Context context(2);
  for (const Case& c : kCases) {
    if (c.m > 8) continue;
    const int64_t k = columns_of(dtype, c);
    const Weights w(rng, dtype, c.n, k);
    const Tensor x = random_tensor(rng, c.m, k);
    Tensor reference = poisoned(c.m, c.n);
    matmul_reference(rounded_to_int8(x), w.view(), {}, reference);
    for (Isa level : levels()) {
      limit_isa(level);
      Tensor y = poisoned(c.m, c.n);
      const MatmulWeight weight = prepare_matmul_weight(context, w.view());
      const MatmulTarget target{&weight, {}, y};
      matmul(context, {x, {&target, 1}});
      // One code of x may round the other way; everything else is f32 rounding.
      expect_close(y, reference, x, w.view(), 20 * kFloatTolerance, label(dtype, level, c));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(MatmulTest, AddsBiasForSeveralTargets) {
  const DType dtype = GetParam();
  Rng rng(9);
  Context context(2);
  for (const Case& c : kCases) {
    const int64_t k = columns_of(dtype, c);
    const Weights w1(rng, dtype, c.n, k);
    const Weights w2(rng, dtype, c.n + 5, k);
    const Tensor x = random_tensor(rng, c.m, k);
    const Tensor bias = random_tensor(rng, 1, c.n);
    Tensor want1 = poisoned(c.m, c.n);
    Tensor want2 = poisoned(c.m, c.n + 5);
    matmul_reference(x, w1.view(), bias, want1);
    matmul_reference(x, w2.view(), {}, want2);
    for (Isa level : levels()) {
      limit_isa(level);
      const MatmulWeight weight1 = prepare_matmul_weight(context, w1.view());
      const MatmulWeight weight2 = prepare_matmul_weight(context, w2.view());
      Tensor y1 = poisoned(c.m, c.n);
      Tensor y2 = poisoned(c.m, c.n + 5);
      const MatmulTarget targets[] = {{&weight1, bias, y1}, {&weight2, {}, y2}};
      matmul(context, {x, targets});
      expect_close(y1, want1, x, w1.view(), tolerance(dtype), label(dtype, level, c) + " bias");
      expect_close(y2, want2, x, w2.view(), tolerance(dtype), label(dtype, level, c) + " other");
      if (HasFatalFailure()) return;
    }
  }
}

bool same_bits(const void* a, const void* b, int64_t bytes) {
  return std::memcmp(a, b, static_cast<size_t>(bytes)) == 0;
}

TEST_P(MatmulTest, RowsDoNotInfluenceEachOtherWithinAPath) {
  const DType dtype = GetParam();
  Rng rng(10);
  Context context(2);
  const int64_t n = 50;
  const int64_t k = columns_of(dtype, {1, 0, 2});
  const Weights w(rng, dtype, n, k);
  for (Isa level : levels()) {
    limit_isa(level);
    const MatmulWeight weight = prepare_matmul_weight(context, w.view());
    for (auto [all, some] : {std::pair<int64_t, int64_t>{8, 1}, {7, 3}, {90, 40}, {90, 67}}) {
      const Tensor x = random_tensor(rng, all, k);
      Tensor y = poisoned(all, n);
      Tensor part = poisoned(some, n);
      const MatmulTarget whole{&weight, {}, y};
      matmul(context, {x, {&whole, 1}});
      const int64_t first = all - some;
      const MatmulTarget slice{&weight, {}, part};
      matmul(context, {x.view().rows(first, some), {&slice, 1}});
      ASSERT_TRUE(same_bits(y.view().row(first), part.view().data(), part.bytes()))
          << name(dtype) << " " << name(level) << " rows " << some << " of " << all;
    }
  }
}

TEST_P(MatmulTest, GivesTheSameBitsForAnyNumberOfThreadsAndForMappedWeights) {
  const DType dtype = GetParam();
  Rng rng(11);
  Context one(1);
  Context two(2);
  Context three(3);
  for (const Case& c : kCases) {
    const int64_t k = columns_of(dtype, c);
    // An address that only bytes may have.
    const Weights w(rng, dtype, c.n, k, 1.0f, 1);
    const Tensor x = random_tensor(rng, c.m, k);
    for (Isa level : levels()) {
      limit_isa(level);
      Tensor first = poisoned(c.m, c.n);
      const MatmulWeight packed = prepare_matmul_weight(one, w.view());
      const MatmulTarget target{&packed, {}, first};
      matmul(one, {x, {&target, 1}});
      for (Context* context : {&two, &three}) {
        const MatmulWeight mapped = prepare_matmul_weight(*context, w.view(), false);
        Tensor y = poisoned(c.m, c.n);
        const MatmulTarget again{&mapped, {}, y};
        matmul(*context, {x, {&again, 1}});
        ASSERT_TRUE(same_bits(first.view().data(), y.view().data(), y.bytes()))
            << label(dtype, level, c);
      }
    }
  }
}

TEST_P(MatmulTest, WritesOnlyItsColumnsOfAWiderMatrix) {
  const DType dtype = GetParam();
  Rng rng(12);
  Context context(2);
  for (const Case& c : kCases) {
    const int64_t k = columns_of(dtype, c);
    const Weights w(rng, dtype, c.n, k);
    const Tensor wide_x = random_tensor(rng, c.m, k + 7);
    const ConstTensorView x(wide_x.view().data(), DType::kF32, Shape{c.m, k},
                            wide_x.view().row_stride_bytes());
    for (Isa level : levels()) {
      limit_isa(level);
      const MatmulWeight weight = prepare_matmul_weight(context, w.view());
      Tensor wide = poisoned(c.m, c.n + 9);
      const TensorView y(wide.view().data() + 4 * sizeof(float), DType::kF32, Shape{c.m, c.n},
                         wide.view().row_stride_bytes());
      const MatmulTarget target{&weight, {}, y};
      matmul(context, {x, {&target, 1}});
      for (int64_t i = 0; i < c.m; ++i) {
        for (int64_t n = 0; n < c.n + 9; ++n) {
          const bool inside = n >= 4 && n < 4 + c.n;
          ASSERT_EQ(std::isnan(wide.view().row_as<float>(i)[n]), !inside) << label(dtype, level, c);
        }
      }
    }
  }
}

TEST_P(MatmulTest, SurvivesExtremeValues) {
  const DType dtype = GetParam();
  Rng rng(13);
  Context context(2);
  const int64_t k = columns_of(dtype, {1, 0, 2});
  for (Isa level : levels()) {
    limit_isa(level);
    for (int64_t m : {1, 3, 40}) {
      for (float scale : {0.0f, 1e-4f, 3e3f}) {
        const Weights w(rng, dtype, 20, k, scale);
        const MatmulWeight weight = prepare_matmul_weight(context, w.view());
        for (float x_scale : {0.0f, 1e-30f, 1e-3f, 1e15f}) {
          const Tensor x = random_tensor(rng, m, k, x_scale);
          Tensor y = poisoned(m, 20);
          Tensor reference = poisoned(m, 20);
          matmul_reference(x, w.view(), {}, reference);
          const MatmulTarget target{&weight, {}, y};
          matmul(context, {x, {&target, 1}});
          expect_close(y, reference, x, w.view(), tolerance(dtype),
                       label(dtype, level, {m, 20, 2}));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(MatmulTest, NotANumberReachesItsRowAndNoOther) {
  const DType dtype = GetParam();
  Rng rng(14);
  Context context(2);
  const int64_t k = columns_of(dtype, {1, 0, 2});
  const Weights w(rng, dtype, 20, k);
  for (Isa level : levels()) {
    limit_isa(level);
    const MatmulWeight weight = prepare_matmul_weight(context, w.view());
    for (int64_t m : {4, 40}) {
      Tensor x = random_tensor(rng, m, k);
      x.as<float>()[2 * k + 5] = std::numeric_limits<float>::quiet_NaN();
      Tensor y = poisoned(m, 20);
      const MatmulTarget target{&weight, {}, y};
      matmul(context, {x, {&target, 1}});
      for (int64_t i = 0; i < m * 20; ++i) {
        ASSERT_EQ(std::isnan(y.as<float>()[i]), i / 20 == 2) << label(dtype, level, {m, 20, 2});
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Weights, MatmulTest, ::testing::ValuesIn(kWeightDTypes),
                         [](const auto& test) { return std::string(name(test.param)); });

TEST(MatmulErrors, RefusesWhatDoesNotFit) {
  Context context(1);
  Tensor w(DType::kF32, Shape{3, 8});
  Tensor x(DType::kF32, Shape{2, 8});
  Tensor y(DType::kF32, Shape{2, 3});
  Tensor wrong(DType::kF32, Shape{2, 4});
  Tensor narrow(DType::kF16, Shape{2, 8});
  const MatmulWeight weight = prepare_matmul_weight(context, w);
  const MatmulWeight none;
  const auto call = [&](const MatmulTarget& target, ConstTensorView input) {
    matmul(context, {input, {&target, 1}});
  };
  EXPECT_NO_THROW(call({&weight, {}, y}, x));
  EXPECT_THROW(call({&weight, {}, wrong}, x), Error);
  EXPECT_THROW(call({&weight, wrong, y}, x), Error);
  EXPECT_THROW(call({&weight, {}, y}, wrong), Error);
  EXPECT_THROW(call({&weight, {}, y}, narrow), Error);
  EXPECT_THROW(call({&weight, {}, {}}, x), Error);
  EXPECT_THROW(call({&none, {}, y}, x), Error);
  EXPECT_THROW(call({nullptr, {}, y}, x), Error);
  const TensorView inside_x(x.view().data(), DType::kF32, Shape{2, 3});
  EXPECT_THROW(call({&weight, {}, inside_x}, x), Error);
  EXPECT_THROW(prepare_matmul_weight(context, Tensor(DType::kI32, Shape{2, 2})), Error);
  EXPECT_THROW(prepare_matmul_weight(context, Tensor(DType::kF32, Shape{2})), Error);
  EXPECT_THROW(prepare_matmul_weight(context, {}), Error);
}

TEST(MatmulErrors, AcceptsEmptyMatrices) {
  Context context(2);
  Tensor w(DType::kF32, Shape{3, 8});
  const MatmulWeight weight = prepare_matmul_weight(context, w);
  float unused = 0;
  const TensorView y(&unused, Shape{0, 3});
  const MatmulTarget target{&weight, {}, y};
  EXPECT_NO_THROW(matmul(context, {ConstTensorView(&unused, Shape{0, 8}), {&target, 1}}));
  EXPECT_NO_THROW(matmul(context, {ConstTensorView(&unused, Shape{0, 8}), {}}));
  const TensorView nowhere(static_cast<float*>(nullptr), Shape{0, 3});
  const MatmulTarget no_memory{&weight, {}, nowhere};
  const ConstTensorView no_rows(static_cast<const float*>(nullptr), Shape{0, 8});
  EXPECT_NO_THROW(matmul(context, {no_rows, {&no_memory, 1}}));
}

}  // namespace
}  // namespace spb::ops
