// The CUDA path of matmul; a stub stands in where CUDA is not built.
#pragma once

#include <memory>

#include "ops/matmul/matmul.h"

namespace spb::ops {

// A weight on the device. f32, f16, bf16, q8_0, q4_0 and q4_1 keep their format, with the codes of
// blocks in planes; other formats become bf16.
std::unique_ptr<MatmulWeight::Impl> prepare_matmul_weight_cuda(Context& context,
                                                               ConstTensorView weight);

// Few rows: products of every weight as it is stored, with sums in f32; a row has the same bits
// beside up to 7 others, on Hopper with x and the weight in bf16 beside up to 15. More rows:
// weights that are not of the dtype of x are expanded to it first, then cuBLASLt.
void matmul_cuda(Context& context, const MatmulArgs& args);

}  // namespace spb::ops
