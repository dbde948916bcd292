#include "core/cuda/not_built.h"
#include "ops/matmul/matmul_cuda.h"
#include "ops/matmul/matmul_weight.h"

namespace spb::ops {

std::unique_ptr<MatmulWeight::Impl> prepare_matmul_weight_cuda(Context&, ConstTensorView, bool) {
  cuda::not_built("matmul");
}
void matmul_cuda(Context&, const MatmulArgs&) { cuda::not_built("matmul"); }

}  // namespace spb::ops
