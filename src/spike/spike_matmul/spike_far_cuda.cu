// Sums in 64 bits, for tokens and rows of weights with numbers that no digits hold. Plain loops:
// hardly any input has them.
#include <algorithm>

#include "core/cuda/wgmma.cuh"
#include "ops/swiglu/swiglu.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kListBlocks = 16;  // that share the far tokens

// sum over a group of code * count
__device__ int64_t exact_sum(const DeviceWeight& w, const DeviceCounts& counts, int64_t row,
                             int64_t token, int group) {
  const signed char* tile = w.tile(row / kTileOutputs, group);
  const auto in_tile = static_cast<int>(row % kTileOutputs);
  int64_t sum = 0;
  const int first = group * kFlagGroup;
  const int end = min(first + kFlagGroup, counts.channels);
  for (int c = first; c < end; ++c) {
    const int code = tile[cuda::swizzled(in_tile, (c - first) / 16) + c % 16];
    sum += int64_t{code} * counts.count(token, c);
  }
  if (w.excess == nullptr) return sum;
  const int64_t cell = row / kBlockRows * w.groups + group;
  for (int64_t e = w.excess_begin[cell]; e < w.excess_begin[cell + 1]; ++e) {
    if (w.excess[e].row != row % kBlockRows) continue;
    sum += int64_t{w.excess[e].excess} * counts.count(token, first + w.excess[e].column);
  }
  return sum;
}

__device__ float scaled_sum(const DeviceWeight& w, const DeviceCounts& counts, int64_t row,
                            int64_t token) {
  float sum = 0;
  for (int g = 0; g < w.groups; ++g) {
    const float scale =
        w.scales[(row / kTileOutputs * w.groups + g) * kTileOutputs + row % kTileOutputs];
    sum = __fmaf_rn(__ll2float_rn(exact_sum(w, counts, row, token, g)), scale, sum);
  }
  return sum;
}

// Products with one matrix, or those with `weight` opened by those with a gate, in bf16.
struct FarTarget {
  DeviceWeight weight;
  DeviceWeight gate;
  DeviceOutput out;
  bool gated;

  __device__ void compute(const DeviceCounts& counts, int64_t row, int64_t token) const {
    const float threshold = counts.thresholds[token];
    float result = out.result(row, threshold, scaled_sum(weight, counts, row, token));
    if (gated) {
      const float opened = out.result(row, threshold, scaled_sum(gate, counts, row, token));
      result = cuda::to_float(ops::gated(__float2bfloat16_rn(opened), __float2bfloat16_rn(result)));
    }
    out.store(token, row, result);
  }
};

__global__ void __launch_bounds__(kThreads)
    far_tokens_kernel(const FarTarget target, const DeviceCounts counts, const int32_t* tokens,
                      const int32_t* token_count) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= target.weight.rows) return;
  const int count = *token_count;
  for (int i = static_cast<int>(blockIdx.y); i < count; i += static_cast<int>(gridDim.y)) {
    target.compute(counts, row, tokens[i]);
  }
}

// Far tokens are done.
__global__ void __launch_bounds__(kThreads)
    far_rows_kernel(const FarTarget target, const DeviceCounts counts, const int32_t* rows,
                    const int32_t* far_flags) {
  const int64_t token = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (token >= counts.rows || far_flags[token] != 0) return;
  target.compute(counts, rows[blockIdx.y], token);
}

unsigned blocks_of(int64_t threads) {
  return static_cast<unsigned>(cuda::ceil_divide(threads, kThreads));
}

// Rows of `target` that are far in one of its matrices.
void compute_far_rows(Context& context, const FarTarget& target, const DeviceCounts& counts,
                      const CountTiles& tiles, const DeviceTiles& matrix) {
  constexpr int64_t kMostBlocks = 65535;
  for (int64_t done = 0; done < matrix.far_row_count; done += kMostBlocks) {
    const auto rows = static_cast<unsigned>(std::min(matrix.far_row_count - done, kMostBlocks));
    far_rows_kernel<<<dim3(blocks_of(counts.rows), rows), kThreads, 0, cuda::stream_of(context)>>>(
        target, counts, matrix.far_rows.as<int32_t>() + done, tiles.far_flags);
    cuda::check_launch("spike_matmul: far rows");
  }
}

void compute_far_tokens(Context& context, const FarTarget& target, const DeviceCounts& counts,
                        const CountTiles& tiles) {
  far_tokens_kernel<<<dim3(blocks_of(target.weight.rows), kListBlocks), kThreads, 0,
                      cuda::stream_of(context)>>>(target, counts, tiles.far_tokens,
                                                  tiles.far_count);
  cuda::check_launch("spike_matmul: far tokens");
}

}  // namespace

void multiply_far(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                  const SpikeMatmulTarget& target) {
  const FarTarget far{device_weight(*target.weight), {}, device_output(target), false};
  compute_far_tokens(context, far, counts, tiles);
  compute_far_rows(context, far, counts, tiles, target.weight->impl().tiles);
}

void multiply_far_gated(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                        const SpikeGatedMatmulArgs& args) {
  const FarTarget far{device_weight(*args.up), device_weight(*args.gate),
                      device_output({args.up, {}, args.y}), true};
  compute_far_tokens(context, far, counts, tiles);
  for (const SpikeWeight* weight : {args.gate, args.up}) {
    compute_far_rows(context, far, counts, tiles, weight->impl().tiles);
  }
}

}  // namespace spb::spike
