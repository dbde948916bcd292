#include "ops/matmul/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/block_formats.h"
#include "core/buffer.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/rng.h"

namespace spb::ops {
namespace {

TEST(MatmulTest, Smoke) {
  Rng rng(1);
  Context context(2);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_1}) {
    const int64_t m = 5, n = 19, k = 96;
    Tensor w(dtype, Shape{n, k});
    std::vector<float> row(k);
    for (int64_t i = 0; i < n; ++i) {
      for (float& v : row) v = rng.normal();
      quantize_row(dtype, row.data(), w.view().row(i), k);
    }
    Tensor x(DType::kF32, Shape{m, k}), y(DType::kF32, Shape{m, n}), z(DType::kF32, Shape{m, n});
    for (int64_t i = 0; i < m * k; ++i) x.as<float>()[i] = rng.normal();
    for (int64_t i = 0; i < m * n; ++i) y.as<float>()[i] = std::nanf("");
    MatmulWeight prepared = prepare_matmul_weight(context, w);
    const MatmulTarget target{&prepared, {}, y, false};
    matmul(context, {x, {&target, 1}});
    matmul_reference(x, w, {}, z);
    for (int64_t i = 0; i < m * n; ++i) {
      ASSERT_NEAR(y.as<float>()[i], z.as<float>()[i], 1e-4) << name(dtype) << " " << i;
    }
  }
}

}  // namespace
}  // namespace spb::ops
