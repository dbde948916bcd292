#include "core/widen.h"

#include "core/block_formats.h"

namespace spb {

Tensor widened(ConstTensorView view) {
  if (!view.defined()) return {};
  Tensor out(DType::kF32, view.shape());
  for (int64_t row = 0; row < view.shape().rows(); ++row) {
    dequantize_row(view.dtype(), view.row(row), out.view().row_as<float>(row), view.shape().last());
  }
  return out;
}

}  // namespace spb
