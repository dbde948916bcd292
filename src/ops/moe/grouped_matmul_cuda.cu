// grouped_matmul on a CUDA device: chooses the path, and expands weights that tensor cores cannot
// take. The other files of this operator:
//   grouped_matmul_few_rows_cuda   weights as stored, for few rows; grouped_matmul_float.cuh
//   grouped_matmul_float_cuda      the same in tiles, for f32 rows
//   grouped_matmul_hopper_cuda     bf16 on warpgroups; grouped_matmul_tiles.cuh
//   grouped_matmul_tiles_cuda      bf16 on cards before Hopper
#include <algorithm>

#include "ops/moe/grouped_matmul_float.cuh"
#include "ops/moe/grouped_matmul_tiles.cuh"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {
namespace {

constexpr int kThreads = 256;

constexpr int64_t kFewRows = 64;
// Of expanded weights at a time, unless one expert has more.
constexpr int64_t kExpandedBytes = int64_t{1} << 30;

// Experts along y of the grid, from `first_expert` on; those without rows are left out.
template <DType kDtype>
__global__ void __launch_bounds__(kThreads)
    expand_kernel(Planes w, const int64_t* offsets, int first_expert, int64_t units,
                  __nv_bfloat16* out) {
  const int64_t expert = first_expert + blockIdx.y;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= units || offsets[expert] == offsets[expert + 1]) return;
  const int64_t row_units = w.columns / kUnit;
  float values[kUnit];
  read_unit<kDtype>(w, expert * (units / row_units) + index / row_units, index % row_units, values);
  Pack<__nv_bfloat16, kUnit> pack;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) pack.at[i] = __float2bfloat16_rn(values[i]);
  pack.store(out + (int64_t{blockIdx.y} * units + index) * kUnit);
}

using Multiply = void (*)(Context&, const GroupedProduct<__nv_bfloat16>&, const __nv_bfloat16*);

Multiply tensor_cores(Context& context, bool warpgroups) {
  return warpgroups && context.stream().is_hopper() ? grouped_matmul_warpgroups
                                                    : grouped_matmul_tiles;
}

void multiply_bf16(Context& context, const GroupedMatmulArgs& args,
                   const GroupedMatmulTarget& target, Multiply multiply) {
  using T = __nv_bfloat16;
  const Arena::Scope scope(context.arena());
  const auto experts = static_cast<int>(args.offsets.size()) - 1;
  const Planes w = expert_planes(target);
  GroupedProduct<T> product{cuda::rows_of<T>(args.x),
                            cuda::rows_of<T>(target.y),
                            args.offsets.data(),
                            0,
                            experts,
                            args.x.shape()[0],
                            static_cast<int>(target.y.shape()[1]),
                            static_cast<int>(args.x.shape()[1])};
  const DType dtype = target.weights[0]->dtype();
  if (dtype == DType::kBF16) {
    return multiply(context, product, reinterpret_cast<const T*>(w.codes));
  }
  const int64_t elements = int64_t{product.outputs} * product.columns;
  const int64_t bytes = elements * static_cast<int64_t>(sizeof(T));
  const auto some = static_cast<int>(std::clamp<int64_t>(kExpandedBytes / bytes, 1, experts));
  T* expanded = context.arena().allocate<T>(some * elements);
  for (int first = 0; first < experts; first += some) {
    product.first_expert = first;
    product.last_expert = std::min(first + some, experts);
    const dim3 blocks(static_cast<unsigned>(cuda::ceil_divide(elements / kUnit, kThreads)),
                      static_cast<unsigned>(product.last_expert - first));
    cuda::with_row_format(dtype, [&]<DType kDtype>() {
      expand_kernel<kDtype><<<blocks, kThreads, 0, cuda::stream_of(context)>>>(
          w, args.offsets.data(), first, elements / kUnit, expanded);
    });
    cuda::check_launch("grouped_matmul: expanding weights");
    multiply(context, product, expanded);
  }
}

}  // namespace

void grouped_matmul_cuda(Context& context, const GroupedMatmulArgs& args, bool warpgroups) {
  const Shape& shape = args.x.shape();
  if (shape[0] == 0) return;
  check(cuda::packs_fit(args.x, kUnit * 2 / static_cast<int>(block_bytes(args.x.dtype()))),
        "grouped_matmul: x: expected rows aligned to 16 bytes, got a stride of {} bytes",
        args.x.row_stride_bytes());
  check(shape[0] < int64_t{1} << 31, "grouped_matmul: x: expected fewer than 2^31 rows, got {}",
        shape[0]);
  if (shape[0] <= kFewRows) return grouped_matmul_few_rows(context, args);
  for (const GroupedMatmulTarget& target : args.targets) {
    check(target.weights[0]->rows() < int64_t{1} << 31,
          "grouped_matmul: weights: expected fewer than 2^31 rows, got {}",
          target.weights[0]->rows());
    if (args.x.dtype() == DType::kF32) {
      grouped_matmul_float(context, args, target);
    } else {
      multiply_bf16(context, args, target, tensor_cores(context, warpgroups));
    }
  }
}

}  // namespace spb::ops
