#include <vector>

#include "core/block_formats.h"
#include "core/error.h"
#include "ops/matmul/matmul.h"

namespace spb::ops {

void matmul_reference(ConstTensorView x, ConstTensorView weight, ConstTensorView bias, TensorView y,
                      bool accumulate) {
  const int64_t columns = weight.shape().last();
  check(x.shape().last() == columns, "matmul_reference: x: expected {} columns, got {}", columns,
        x.shape().last());
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t n = 0; n < weight.shape().rows(); ++n) {
    dequantize_row(weight.dtype(), weight.row(n), row.data(), columns);
    for (int64_t i = 0; i < x.shape().rows(); ++i) {
      const float* in = x.row_as<float>(i);
      double sum = bias.defined() ? static_cast<double>(bias.as<float>()[n]) : 0.0;
      for (int64_t k = 0; k < columns; ++k) {
        sum += static_cast<double>(in[k]) * static_cast<double>(row[static_cast<size_t>(k)]);
      }
      float& out = y.row_as<float>(i)[n];
      out = static_cast<float>(accumulate ? static_cast<double>(out) + sum : sum);
    }
  }
}

}  // namespace spb::ops
