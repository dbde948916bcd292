#include "spike/int8_rows/int8_rows.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/test_tensors.h"

namespace spb::spike {
namespace {

std::vector<float> rounded(std::vector<float> row) {
  Context context(1);
  Tensor x(DType::kF32, Shape{1, static_cast<int64_t>(row.size())});
  std::copy(row.begin(), row.end(), x.as<float>());
  int8_rows(context, x);
  return {x.as<float>(), x.as<float>() + row.size()};
}

TEST(Int8Rows, TheLargestIs127StepsAndTiesGoToEvenNumbers) {
  EXPECT_EQ(rounded({127, 2.5f, -2.5f, 3.5f, 0.49f, -0.0f}),
            (std::vector<float>{127, 2, -2, 4, 0, 0}));
  EXPECT_EQ(rounded({-254, 1, 3}), (std::vector<float>{-254, 0, 4}));
}

TEST(Int8Rows, ScalesAreClampedAtBothEnds) {
  EXPECT_EQ(rounded({0, 0}), (std::vector<float>{0, 0}));
  EXPECT_EQ(rounded({4e-6f, 6e-6f}), (std::vector<float>{0, 1e-5f}));
  EXPECT_EQ(rounded({1e7f, -1e7f, 5e4f}), (std::vector<float>{127e4f, -128e4f, 5e4f}));
}

TEST(Int8Rows, RowsAreIndependentOfThreadsAndNeighbours) {
  Rng rng(1);
  Tensor all(DType::kF32, Shape{301, 67});
  for (int64_t i = 0; i < all.shape().elements(); ++i) all.as<float>()[i] = rng.uniform(-3, 3);
  std::vector<float> expected;
  for (int64_t n = 0; n < 301; ++n) {
    const float* row = all.view().row_as<float>(n);
    const auto one = rounded({row, row + 67});
    expected.insert(expected.end(), one.begin(), one.end());
    const float step =
        std::fabs(*std::max_element(one.begin(), one.end(),
                                    [](float a, float b) { return std::fabs(a) < std::fabs(b); })) /
        127;
    for (int64_t c = 0; c < 67; ++c) {
      EXPECT_LE(std::fabs(one[static_cast<size_t>(c)] - row[c]), step * 0.5001f);
    }
  }
  Context context(3);
  int8_rows(context, all);
  EXPECT_EQ(expected, std::vector<float>(all.as<float>(), all.as<float>() + 301 * 67));
}

TEST(Int8Rows, NamesTheFirstNumberThatIsNotFinite) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    try {
      rounded({1, 2, bad, bad});
      FAIL();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("row 0, column 2"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace spb::spike
