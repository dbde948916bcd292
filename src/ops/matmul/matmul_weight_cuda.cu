// Preparation of weights for the device: blocks in tiles, or their codes and scales apart.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/block_formats.h"
#include "core/cuda/block_rows.cuh"
#include "ops/matmul/matmul_cuda.h"
#include "ops/matmul/matmul_quantized_tiles.cuh"
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

// All bands of a matrix of blocks.
Buffer tiles_of_blocks(Context& context, ConstTensorView weight) {
  const DType dtype = weight.dtype();
  const int64_t rows = weight.shape()[0];
  const int64_t columns = weight.shape()[1];
  const int64_t band_bytes = tiles_of(columns) * tile_bytes(dtype);
  Buffer host(bands_of(rows) * band_bytes);
  context.pool().parallel_for(bands_of(rows), 1, [&](int64_t begin, int64_t end, int) {
    std::fill(host.data() + begin * band_bytes, host.data() + end * band_bytes, std::byte{});
    for (int64_t n = begin * kTileRows; n < std::min(end * kTileRows, rows); ++n) {
      std::byte* band = host.data() + n / kTileRows * band_bytes;
      for (int64_t b = 0; b < columns / kBlock; ++b) {
        put_block(dtype, weight.row(n) + b * block_bytes(dtype), TilePlace(n, b),
                  band + b / kTileBlocks * tile_bytes(dtype));
      }
    }
  });
  return host;
}

// Rows of floats, or planes.
Buffer planes_of_rows(Context& context, ConstTensorView weight, DType dtype) {
  const Shape& shape = weight.shape();
  const int64_t row_codes = code_bytes_per_row(dtype, shape[1]);
  const int64_t row_scales = 2 * scales_per_block(dtype) * (shape[1] / kBlock);
  Buffer host((row_codes + row_scales) * shape[0]);
  std::byte* scales = host.data() + row_codes * shape[0];
  context.pool().parallel_for(shape[0], 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      std::byte* codes = host.data() + n * row_codes;
      if (dtype != weight.dtype()) {
        round_row(weight, n, codes);
      } else if (is_float(dtype)) {
        std::memcpy(codes, weight.row(n), static_cast<size_t>(row_codes));
      } else {
        split_blocks(dtype, weight.row(n), shape[1], codes, scales + n * row_scales);
      }
    }
  });
  return host;
}

}  // namespace

std::unique_ptr<MatmulWeight::Impl> prepare_matmul_weight_cuda(Context& context,
                                                               ConstTensorView weight,
                                                               bool allow_repack) {
  const Shape& shape = weight.shape();
  check(shape[1] % kUnit == 0, "matmul: weight: expected columns in multiples of {}, got {}", kUnit,
        shape);
  auto impl = std::make_unique<MatmulWeight::Impl>();
  impl->dtype = stored_dtype(weight);
  impl->rows = shape[0];
  impl->columns = shape[1];
  impl->in_tiles = allow_repack && context.stream().is_hopper() && !is_float(impl->dtype);
  const Buffer host = impl->in_tiles ? tiles_of_blocks(context, weight)
                                     : planes_of_rows(context, weight, impl->dtype);
  impl->owned = Buffer(host.bytes(), context.device());
  cuda::copy_to_device(context.device().index, impl->owned.data(), host.data(), host.bytes());
  return impl;
}

}  // namespace spb::ops
