// The CUDA path of matmul; a stub stands in where CUDA is not built.
#pragma once

#include <memory>

#include "ops/matmul/matmul.h"

namespace spb::ops {

// A weight on the device. f32, f16, bf16, q8_0, q4_0 and q4_1 keep their format; other formats
// become bf16. Blocks become tiles for tensor cores where that is allowed and the device is a
// Hopper, otherwise their codes and scales become planes, which products of experts read.
std::unique_ptr<MatmulWeight::Impl> prepare_matmul_weight_cuda(Context& context,
                                                               ConstTensorView weight,
                                                               bool allow_repack);

// Few rows: products of every weight as it is stored, with sums in f32; a row has the same bits
// beside up to 7 others, on Hopper with x in bf16 and the weight in bf16 or in tiles beside up to
// 15. There f32 rows times tiles are three bf16 each, so that no bit of x is lost. More rows:
// weights that are not of the dtype of x are expanded to it first, then cuBLASLt.
void matmul_cuda(Context& context, const MatmulArgs& args);

}  // namespace spb::ops
