// Preparation of weights for the device: codes and scales of blocks apart.
#include <cstring>
#include <vector>

#include "core/block_formats.h"
#include "core/cuda/block_rows.cuh"
#include "ops/matmul/matmul_cuda.h"
#include "ops/matmul/matmul_planes.cuh"
#include "ops/matmul/matmul_weight.h"

namespace spb::ops {
namespace {

// Kernels read units of 8 elements.
constexpr int64_t kUnit = 8;

DType stored_dtype(ConstTensorView weight) {
  return cuda::readable_on_device(weight.dtype()) ? weight.dtype() : DType::kBF16;
}

void round_row(ConstTensorView weight, int64_t row, std::byte* out) {
  const int64_t columns = weight.shape()[1];
  std::vector<float> values(static_cast<size_t>(columns));
  dequantize_row(weight.dtype(), weight.row(row), values.data(), columns);
  auto* to = reinterpret_cast<bf16*>(out);
  for (int64_t c = 0; c < columns; ++c) to[c] = to_bf16(values[static_cast<size_t>(c)]);
}

// One row of blocks: codes to `codes`, scales to `scales`.
void split_blocks(DType dtype, const std::byte* row, int64_t columns, std::byte* codes,
                  std::byte* scales) {
  const int64_t scale_bytes = 2 * scales_per_block(dtype);
  const int64_t block = block_bytes(dtype);
  const int64_t code_bytes = block - scale_bytes;
  for (int64_t b = 0; b < columns / kBlock; ++b) {
    std::memcpy(scales + b * scale_bytes, row + b * block, static_cast<size_t>(scale_bytes));
    std::memcpy(codes + b * code_bytes, row + b * block + scale_bytes,
                static_cast<size_t>(code_bytes));
  }
}

}  // namespace

std::unique_ptr<MatmulWeight::Impl> prepare_matmul_weight_cuda(Context& context,
                                                               ConstTensorView weight) {
  const Shape& shape = weight.shape();
  check(shape[1] % kUnit == 0, "matmul: weight: expected columns in multiples of {}, got {}", kUnit,
        shape);
  auto impl = std::make_unique<MatmulWeight::Impl>();
  impl->dtype = stored_dtype(weight);
  impl->rows = shape[0];
  impl->columns = shape[1];
  const int64_t row_codes = code_bytes_per_row(impl->dtype, shape[1]);
  const int64_t row_scales = 2 * scales_per_block(impl->dtype) * (shape[1] / kBlock);
  Buffer host((row_codes + row_scales) * shape[0]);
  std::byte* scales = host.data() + row_codes * shape[0];
  context.pool().parallel_for(shape[0], 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      std::byte* codes = host.data() + n * row_codes;
      if (impl->dtype != weight.dtype()) {
        round_row(weight, n, codes);
      } else if (is_float(impl->dtype)) {
        std::memcpy(codes, weight.row(n), static_cast<size_t>(row_codes));
      } else {
        split_blocks(impl->dtype, weight.row(n), shape[1], codes, scales + n * row_scales);
      }
    }
  });
  impl->owned = Buffer(host.bytes(), context.device());
  cuda::copy_to_device(context.device().index, impl->owned.data(), host.data(), host.bytes());
  return impl;
}

}  // namespace spb::ops
