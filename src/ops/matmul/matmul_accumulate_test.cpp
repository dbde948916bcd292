// matmul with accumulate: on every path the sum is formed as without it, then added once.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/test_tensors.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_test_weights.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;

class MatmulAccumulate : public ::testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(Weights, MatmulAccumulate, ::testing::ValuesIn(kWeightDTypes),
                         [](const auto& test) { return std::string(name(test.param)); });

struct Case {
  int64_t m, n, columns;
};

// Few rows and many, and rows that are expanded in several passes.
std::vector<Case> cases_of(DType dtype) {
  const int64_t block = std::max<int64_t>(32, block_elements(dtype));
  std::vector<Case> cases{{1, 1, block},      {1, 50, 3 * block}, {3, 33, block},
                          {8, 16, 2 * block}, {16, 17, block},    {17, 70, 2 * block},
                          {33, 31, block},    {40, 49, 2560},     {513, 40, block},
                          {64, 900, block}};
  if (is_float(dtype)) cases.insert(cases.end(), {{2, 5, 1}, {37, 19, 333}, {520, 3, 29}});
  return cases;
}

std::string label(DType dtype, Isa level, const Case& c) {
  return fmt::format("{} {} M {} N {} K {}", name(dtype), name(level), c.m, c.n, c.columns);
}

StridedMatrix random_matrix(Rng& rng, int64_t rows, int64_t columns, int64_t gap, float scale) {
  StridedMatrix matrix(rows, columns, gap);
  matrix.fill_normal(rng, scale);
  return matrix;
}

// y + what the same call writes without accumulate, in f32.
void expect_added(const StridedMatrix& sum, const StridedMatrix& before, const StridedMatrix& plain,
                  const std::string& what) {
  for (int64_t i = 0; i < plain.view().shape()[0]; ++i) {
    for (int64_t n = 0; n < plain.view().shape()[1]; ++n) {
      ASSERT_EQ(sum.at(i, n), before.at(i, n) + plain.at(i, n))
          << what << " at [" << i << ", " << n << "]";
    }
  }
  EXPECT_TRUE(sum.gaps_untouched()) << what;
}

// One target adds to a matrix much larger than the sums, beside one that overwrites NaN.
void add_and_compare(Context& context, Rng& rng, DType dtype, const Case& c, Isa level) {
  const test::IsaScope scope(level);
  const std::string what = label(dtype, level, c);
  const Weights w(rng, dtype, c.n, c.columns);
  const MatmulWeight weight = prepare_matmul_weight(context, w.view(), c.n % 2 == 0);
  const StridedMatrix x = random_matrix(rng, c.m, c.columns, 3, 1.0f);
  const StridedMatrix bias = random_matrix(rng, 1, c.n, 0, 1.0f);
  const ConstTensorView added = c.m % 2 == 0 ? ConstTensorView(bias.view()) : ConstTensorView();
  const StridedMatrix before = random_matrix(rng, c.m, c.n, 5, 1e4f);
  const StridedMatrix sum = before.clone(), overwritten(c.m, c.n, 1), plain(c.m, c.n);
  const MatmulTarget alone{&weight, added, plain.view()};
  matmul(context, {x.view(), {&alone, 1}});
  const MatmulTarget both[] = {{&weight, added, sum.view(), true},
                               {&weight, added, overwritten.view()}};
  matmul(context, {x.view(), both});
  expect_added(sum, before, plain, what);
  EXPECT_TRUE(test::same_bits(overwritten.view(), plain.view())) << what;
}

TEST_P(MatmulAccumulate, AddsOnceWhatIsWrittenWithoutIt) {
  Rng rng(21);
  Context context(3);
  for (const Case& c : cases_of(GetParam())) {
    for (const Isa level : test::isa_levels()) {
      add_and_compare(context, rng, GetParam(), c, level);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(MatmulAccumulate, RowsAloneAndAnyNumberOfThreadsGiveTheSameBits) {
  Rng rng(22);
  Context one(1);
  Context three(3);
  const int64_t columns = 2 * std::max<int64_t>(32, block_elements(GetParam()));
  const Weights w(rng, GetParam(), 50, columns);
  for (const Isa level : test::isa_levels()) {
    const test::IsaScope scope(level);
    const MatmulWeight weight = prepare_matmul_weight(one, w.view());
    const StridedMatrix x = random_matrix(rng, 8, columns, 0, 1.0f);
    const StridedMatrix together = random_matrix(rng, 8, 50, 2, 10.0f);
    const StridedMatrix alone = together.clone();
    const MatmulTarget all{&weight, {}, together.view(), true};
    matmul(three, {x.view(), {&all, 1}});
    for (int64_t i = 0; i < 8; ++i) {
      const MatmulTarget row{&weight, {}, alone.view().rows(i, 1), true};
      matmul(one, {x.view().rows(i, 1), {&row, 1}});
    }
    EXPECT_TRUE(test::same_bits(together.view(), alone.view())) << name(level);
  }
}

TEST(MatmulAccumulateReference, AddsInDouble) {
  Tensor x(DType::kF32, Shape{1, 2}), w(DType::kF32, Shape{1, 2}), y(DType::kF32, Shape{1, 1});
  x.as<float>()[0] = 1e8f, x.as<float>()[1] = 3;
  w.as<float>()[0] = w.as<float>()[1] = 1;
  y.as<float>()[0] = -1e8f;
  matmul_reference(x, w, {}, y, true);
  EXPECT_EQ(y.as<float>()[0], 3);
}

}  // namespace
}  // namespace spb::ops
