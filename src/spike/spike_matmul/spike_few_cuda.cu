// Few rows of counts: every weight is read once, by as many blocks as there are blocks of 16 rows
// of weights. The warps of a block share the groups; when a group's sum is a float, it waits in
// shared memory until all are there, since they are added in ascending order.
//
// The tensor cores do not mind in which order the columns of a product come: a thread reads 16
// bytes of a row at a time and they make up its part of four products.
#include <algorithm>

#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/wgmma.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kRows = static_cast<int>(kBlockRows);
constexpr int kMostGroups = 160;  // that wait in shared memory at once

using Piece = cuda::Pack<uint32_t, 4>;

struct Problem {
  DeviceTargets targets;  // pieces are blocks of 16 rows
  DeviceCounts counts;    // of at most kFewTokens rows
  bool aligned;           // rows of the core can be read 16 bytes at a time
  Choice choice;
};

__device__ Piece read_counts(const DeviceCounts& counts, bool aligned, int token, int channel) {
  if (token >= counts.rows || channel >= counts.channels) return {};
  const signed char* from = counts.core + token * counts.core_stride + channel;
  if (aligned) return Piece::load(reinterpret_cast<const uint32_t*>(from));
  Piece piece{};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (channel + i >= counts.channels) break;
    piece.at[i / 4] |= static_cast<uint32_t>(static_cast<unsigned char>(from[i])) << i % 4 * 8;
  }
  return piece;
}

// What counts and codes beyond int8 add to the sum of one row and token.
__device__ int64_t beyond_core(const DeviceWeight& w, const DeviceCounts& counts, int64_t block,
                               int group, int row, int token) {
  int64_t sum = 0;
  const int first = group * kFlagGroup;
  if (counts.bursts(token, group)) {
    const int in_tile = static_cast<int>(block * kRows % kTileOutputs) + row;
    const signed char* tile = w.tile(block * kRows / kTileOutputs, group);
    const int end = min(first + kFlagGroup, counts.channels);
    for (int c = first; c < end; ++c) {
      const int excess = counts.excess(token, c, counts.core_count(token, c));
      if (excess == 0) continue;
      sum += int64_t{excess} * tile[cuda::swizzled(in_tile, (c - first) / 16) + c % 16];
    }
  }
  if (w.excess == nullptr) return sum;
  const int64_t cell = block * w.groups + group;
  for (int64_t e = w.excess_begin[cell]; e < w.excess_begin[cell + 1]; ++e) {
    if (w.excess[e].row != row) continue;
    sum += int64_t{w.excess[e].excess} * counts.count(token, first + w.excess[e].column);
  }
  return sum;
}

// Sums of one group: rows quad and quad + 8 by tokens 2 pair and 2 pair + 1, as mma.cuh lays out C.
__device__ void multiply_group(const Problem& p, const DeviceWeight& w, int64_t block, int group,
                               int lane, float (&sums)[4]) {
  const int quad = lane / 4;
  const int pair = lane % 4;
  const signed char* tile = w.tile(block * kRows / kTileOutputs, group);
  const int row = static_cast<int>(block * kRows % kTileOutputs) + quad;
  Piece codes[2][2];  // [rows quad, quad + 8][pieces pair, pair + 4]
  Piece counts[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    codes[i / 2][i % 2] = Piece::load(reinterpret_cast<const uint32_t*>(
        tile + cuda::swizzled(row + i / 2 * 8, pair + i % 2 * 4)));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    counts[i] = read_counts(p.counts, p.aligned, quad, group * kFlagGroup + (pair + i * 4) * 16);
  }
  int products[4] = {};
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint32_t words[4] = {codes[0][0].at[step], codes[1][0].at[step], codes[0][1].at[step],
                               codes[1][1].at[step]};
    cuda::mma_bytes(products, words, counts[0].at[step], counts[1].at[step]);
  }
  const bool flagged = lane < p.counts.rows && p.counts.bursts(lane, group);
  const bool beyond = __any_sync(cuda::kFullWarp, flagged) ||
                      (w.excess != nullptr && w.excess_begin[block * w.groups + group] !=
                                                  w.excess_begin[block * w.groups + group + 1]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = pair * 2 + i % 2;
    if (!beyond) {
      sums[i] = small_sum(products[i]);
    } else if (token < p.counts.rows) {
      sums[i] = __ll2float_rn(products[i] +
                              beyond_core(w, p.counts, block, group, quad + i / 2 * 8, token));
    }
  }
}

// Sums of a group where they wait: [tokens][16 rows].
__device__ void keep_sums(const float (&sums)[4], int tokens, int lane, float* kept) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = lane % 4 * 2 + i % 2;
    if (token < tokens) kept[token * kRows + lane / 4 + i / 2 * 8] = sums[i];
  }
}

__global__ void __launch_bounds__(kThreads)
    few_tokens_kernel(const __grid_constant__ Problem p, int waiting) {
  extern __shared__ __align__(16) unsigned char storage[];
  if (!p.choice.takes_all()) return;
  auto* kept = reinterpret_cast<float*>(storage);  // [waiting groups][tokens][16 rows]
  const int tokens = static_cast<int>(p.counts.rows);
  float* kept_scales = kept + waiting * tokens * kRows;  // [waiting groups][16 rows]
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int t = p.targets.target_of(blockIdx.x);
  const DeviceWeight& w = p.targets.weights[t];
  const int64_t block = int64_t{blockIdx.x} - p.targets.first_piece[t];
  const float* scales = w.scales + block * kRows / kTileOutputs * w.groups * kTileOutputs +
                        block * kRows % kTileOutputs;
  const int own_row = static_cast<int>(threadIdx.x) % kRows;
  const int own_token = static_cast<int>(threadIdx.x) / kRows;
  float sum = 0;
  for (int first = 0; first < w.groups; first += waiting) {
    const int end = min(first + waiting, w.groups);
    for (int g = first + warp; g < end; g += kWarps) {
      float sums[4];
      const float scale = lane < kRows ? scales[g * kTileOutputs + lane] : 0.0f;
      multiply_group(p, w, block, g, lane, sums);
      if (lane < kRows) kept_scales[(g - first) * kRows + lane] = scale;
      keep_sums(sums, tokens, lane, kept + (g - first) * tokens * kRows);
    }
    __syncthreads();
    if (own_token < tokens) {
#pragma unroll 8
      for (int g = 0; g < end - first; ++g) {
        sum = __fmaf_rn(kept[(g * tokens + own_token) * kRows + own_row],
                        kept_scales[g * kRows + own_row], sum);
      }
    }
    __syncthreads();
  }
  const int64_t n = block * kRows + own_row;
  if (own_token >= tokens || n >= w.rows) return;
  const DeviceOutput& out = p.targets.outputs[t];
  out.store(own_token, n, out.result(n, p.counts.thresholds[own_token], sum));
}

}  // namespace

void multiply_few_tokens(Context& context, const DeviceCounts& counts,
                         std::span<const SpikeMatmulTarget> targets, const Choice& choice) {
  const Problem p{
      device_targets(targets,
                     [](const DeviceWeight& w) { return cuda::ceil_divide(w.rows, kBlockRows); }),
      counts,
      reinterpret_cast<uintptr_t>(counts.core) % 16 == 0 && counts.core_stride % 16 == 0 &&
          counts.channels % 16 == 0,
      choice};
  const int waiting = std::min(counts.groups, kMostGroups);
  const int bytes = waiting * (static_cast<int>(counts.rows) + 1) * kRows * 4;
  cuda::allow_shared_memory(context, few_tokens_kernel, kMostGroups * (kFewTokens + 1) * kRows * 4);
  few_tokens_kernel<<<static_cast<unsigned>(p.targets.first_piece[p.targets.count]), kThreads,
                      static_cast<size_t>(bytes), cuda::stream_of(context)>>>(p, waiting);
  cuda::check_launch("spike_matmul");
}

}  // namespace spb::spike
