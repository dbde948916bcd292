#include <cstring>

#include "core/test_cuda.h"
#include "spike/int8_rows/int8_rows.h"

namespace spb::spike {
namespace {

using Int8RowsCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Dtypes, Int8RowsCuda, test::activation_dtypes(), test::dtype_name);

TEST_P(Int8RowsCuda, HasTheBitsOfTheCpu) {
  Rng rng(7);
  Context cpu(1);
  for (const int64_t columns : {1, 31, 64, 128, 257}) {
    for (const float size : {1.0f, 1e-6f, 1e7f}) {
      Tensor x = test::random_tensor(rng, Shape{1 + rng.below(60), columns}, size);
      Tensor device = test::put(context(), x, GetParam());
      int8_rows(cpu, x);
      int8_rows(context(), device);
      const Tensor expected = widened(to_host(test::put(context(), x, GetParam())));
      const Tensor got = test::take(context(), device);
      EXPECT_EQ(
          std::memcmp(expected.as<float>(), got.as<float>(), static_cast<size_t>(got.bytes())), 0)
          << columns << " columns of size " << size;
    }
  }
}

TEST_P(Int8RowsCuda, FaultsNameRowAndColumn) {
  Rng rng(8);
  Tensor x = test::random_tensor(rng, Shape{5, 64});
  x.view().row_as<float>(3)[40] = NAN;
  Tensor device = test::put(context(), x, GetParam());
  int8_rows(context(), device);
  try {
    context().stream().synchronize();
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("row 3, channel 40"), std::string::npos);
  }
}

}  // namespace
}  // namespace spb::spike
