// Few queries, and every dtype: one warp for a query group and a part of its keys.
//
// A block takes one query token, one key/value head and a part of the visible keys; its warps take
// keys in turn, all query heads of the group at once. Parts are joined by a second kernel.
#include "ops/softmax_attention/softmax_attention_cuda.h"

#include <cuda_fp16.h>

#include <algorithm>

#include "core/cuda/reduce.cuh"
#include "ops/softmax_attention/softmax_attention_keys.cuh"

namespace spb::ops {
namespace {

using cuda::Pack;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kHeadsAtOnce = 8;  // query heads whose sums a warp keeps in registers
constexpr float kLog2E = 1.44269504f;

template <typename Element, int kPerLane>
__device__ void read_row(const std::byte* rows, int64_t row, int head_dim, int lane,
                         float (&out)[kPerLane]) {
  const auto* from = reinterpret_cast<const Element*>(rows) + row * head_dim + lane * kPerLane;
  const auto pack = Pack<Element, kPerLane>::load(from);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) out[i] = static_cast<float>(pack.at[i]);
}

// Sums of a warp over its keys for the heads of one pass.
template <int kPerLane>
struct Sums {
  float values[kHeadsAtOnce][kPerLane] = {};
  float largest[kHeadsAtOnce];
  float weight[kHeadsAtOnce] = {};
};

template <typename Element, int kPerLane>
__device__ void add_key(int head_dim, const KeyRows& rows, int64_t row, int lane,
                        const float (&q)[kHeadsAtOnce][kPerLane], int heads, Sums<kPerLane>& sums) {
  float key[kPerLane];
  float value[kPerLane];
  read_row<Element>(rows.keys, row, head_dim, lane, key);
  read_row<Element>(rows.values, row, head_dim, lane, value);
  const float key_scale = rows.key_scales == nullptr ? 1.0f : rows.key_scales[row];
  const float value_scale = rows.value_scales == nullptr ? 1.0f : rows.value_scales[row];
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    if (h >= heads) break;
    float score = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) score += q[h][i] * key[i];
    score = cuda::warp_sum(score) * key_scale;
    const float largest = fmaxf(sums.largest[h], score);
    const float before = exp2f(sums.largest[h] - largest);
    const float now = exp2f(score - largest);
    sums.largest[h] = largest;
    sums.weight[h] = sums.weight[h] * before + now;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      sums.values[h][i] = sums.values[h][i] * before + now * value_scale * value[i];
    }
  }
}

// The warps' sums of one head joined in shared memory and written to the part's slot.
template <int kPerLane>
__device__ void join_warps(const PartsProblem& p, const Sums<kPerLane>& sums, int h, int warp,
                           int lane, float* to) {
  __shared__ float largest[kWarps];
  __shared__ float weight[kWarps];
  __shared__ float values[kWarps][cuda::kWarpSize * kPerLane];
  __syncthreads();
  if (lane == 0) {
    largest[warp] = sums.largest[h];
    weight[warp] = sums.weight[h];
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) values[warp][lane * kPerLane + i] = sums.values[h][i];
  __syncthreads();
  float all = largest[0];
  for (int w = 1; w < kWarps; ++w) all = fmaxf(all, largest[w]);
  for (int c = static_cast<int>(threadIdx.x); c < p.head_dim + 1; c += kThreads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float factor = largest[w] == -INFINITY ? 0.0f : exp2f(largest[w] - all);
      sum += factor * (c < p.head_dim ? values[w][c] : weight[w]);
    }
    to[c < p.head_dim ? c : p.head_dim + 1] = sum;
  }
  if (threadIdx.x == 0) to[p.head_dim] = all;
}

template <typename Q, typename Element, int kPerLane>
__global__ void __launch_bounds__(kThreads)
    parts_kernel(const __grid_constant__ PartsProblem p, const Q* q) {
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int64_t token = blockIdx.x / p.kv_heads;
  const int kv_head = static_cast<int>(blockIdx.x % p.kv_heads);
  const int group = p.heads / p.kv_heads;
  const int part = static_cast<int>(blockIdx.y);
  const VisibleKeys visible = p.visible(token);
  const PartsOfKeys parts(visible);
  if (part >= parts.count) return;
  const int64_t sinks = visible.sinks.capacity;
  const int64_t first = parts.first(part);
  const int64_t last = parts.first(part + 1);
  for (int head = 0; head < group; head += kHeadsAtOnce) {
    const int heads = min(kHeadsAtOnce, group - head);
    float rows[kHeadsAtOnce][kPerLane];
    Sums<kPerLane> sums;
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) {
      sums.largest[h] = -INFINITY;
      const int own = kv_head * group + head + min(h, heads - 1);
      const Q* from = q + (token * p.heads + own) * p.head_dim + lane * kPerLane;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) rows[h][i] = cuda::to_float(from[i]) * p.scale_log2;
    }
    for (int64_t key = first + warp; key < last; key += kWarps) {
      const bool sink = key < sinks;
      const KeyRows& source = sink ? visible.sinks : visible.ring;
      const int64_t row = sink ? key : (parts.begin + key - sinks) % source.capacity;
      add_key<Element>(p.head_dim, source, kv_head * source.capacity + row, lane, rows, heads,
                       sums);
    }
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) {
      if (h < heads) {
        join_warps(p, sums, h, warp, lane, p.slot(token, kv_head * group + head + h, part));
      }
    }
  }
}

// One block for each query head: the weighted mean over its parts.
template <typename O>
__global__ void __launch_bounds__(kThreads)
    join_parts_kernel(const __grid_constant__ PartsProblem p, O* o) {
  __shared__ float factors[kMaxParts];
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const int64_t row = blockIdx.x;
  const auto thread = static_cast<int>(threadIdx.x);
  const int count = PartsOfKeys(p.visible(row / p.heads)).count;
  const float* parts = p.slot(row / p.heads, static_cast<int>(row % p.heads), 0);
  const int stride = p.head_dim + 2;
  float largest = -INFINITY;
  for (int i = thread; i < count; i += kThreads) {
    factors[i] = parts[i * stride + p.head_dim];
    largest = fmaxf(largest, factors[i]);
  }
  largest = cuda::block_max<kThreads>(largest);
  float weight = 0;
  for (int i = thread; i < count; i += kThreads) {
    factors[i] = exp2f(factors[i] - largest);
    weight += factors[i] * parts[i * stride + p.head_dim + 1];
  }
  weight = cuda::block_sum<kThreads>(weight);
  for (int c = thread; c < p.head_dim; c += kThreads) {
    float sum = 0;
#pragma unroll 8
    for (int i = 0; i < count; ++i) sum += factors[i] * parts[i * stride + c];
    o[row * p.head_dim + c] = cuda::from_float<O>(sum / weight);
  }
}

// At most how many parts the keys of a query have, also of later steps of a recording.
int count_parts(Context& context, const SoftmaxAttentionArgs& args, const PartsProblem& p) {
  int64_t most = 0;
  for (int64_t i = 0; i < (p.batch ? p.tokens : 1); ++i) {
    const PartsSequence& sequence = p.sequences[i];
    const int64_t seen = sequence.first_position + (p.batch ? 1 : p.tokens);
    const int64_t ring = sequence.ring.capacity;
    most = std::max(most, context.advance() != nullptr ? ring : std::min(ring, seen));
  }
  const int64_t keys =
      p.sinks.capacity + (args.window_size > 0 ? std::min(args.window_size, most) : most);
  return static_cast<int>(std::clamp<int64_t>(keys / kPartKeys, 1, kMaxParts));
}

template <typename Q, typename Element>
void launch(Context& context, const SoftmaxAttentionArgs& args, const PartsProblem& p) {
  const dim3 blocks(static_cast<unsigned>(p.tokens * p.kv_heads), static_cast<unsigned>(p.parts));
  const auto* q = reinterpret_cast<const Q*>(args.q.data());
  const auto run = [&]<int kPerLane>() {
    cuda::launch_early(context, "softmax_attention", blocks, kThreads, 0,
                       parts_kernel<Q, Element, kPerLane>, p, q);
  };
  switch (p.head_dim) {
    case 32: run.template operator()<1>(); break;
    case 64: run.template operator()<2>(); break;
    case 128: run.template operator()<4>(); break;
    default:
      fail(ErrorKind::kUsage,
           "softmax_attention: head_dim on a CUDA device: expected 32, 64 or "
           "128, got {}",
           p.head_dim);
  }
}

template <typename Q>
void join_parts(Context& context, const SoftmaxAttentionArgs& args, const PartsProblem& p) {
  const auto joins = static_cast<unsigned>(p.tokens * p.heads);
  cuda::launch_early(context, "softmax_attention: joining parts", dim3(joins), kThreads, 0,
                     join_parts_kernel<Q>, p, reinterpret_cast<Q*>(args.o.data()));
}

PartsProblem parts_problem(Context& context, const SoftmaxAttentionArgs& args) {
  const Shape& q = args.q.shape();
  const VisibleKeys one = visible_keys(args);
  PartsProblem p{};
  p.sinks = one.sinks;
  p.window = one.window;
  p.advance = context.advance();
  p.tokens = q[0];
  p.batch = !args.sequences.empty();
  p.sequences[0] = {one.ring, one.first_position};
  for (size_t i = 0; i < args.sequences.size(); ++i) {
    const CachedSequence& sequence = args.sequences[i];
    p.sequences[i] = {
        key_rows(sequence.keys, sequence.values, sequence.key_scales, sequence.value_scales),
        sequence.first_position};
  }
  p.heads = static_cast<int>(q[1]);
  p.kv_heads = static_cast<int>(any_keys(args).shape()[0]);
  p.head_dim = static_cast<int>(q[2]);
  p.parts = count_parts(context, args, p);
  p.scale_log2 = args.scale * kLog2E;
  p.partial = context.arena().allocate<float>(p.tokens * p.heads * p.parts * (p.head_dim + 2));
  return p;
}

}  // namespace

void softmax_attention_cuda(Context& context, const SoftmaxAttentionArgs& args) {
  if (args.sequences.empty() && prefill_tiles_fit(args)) {
    return softmax_attention_prefill_tiles(context, args);
  }
  const Arena::Scope scope(context.arena());
  const PartsProblem p = parts_problem(context, args);
  const DType cache = any_keys(args).dtype();
  cuda::with_activation(args.q.dtype(), [&](auto type) {
    using Q = decltype(type);
    if (parts_tiles_fit(args)) {
      softmax_attention_parts_tiles(context, args, p);
    } else if (cache == DType::kF32) {
      launch<Q, float>(context, args, p);
    } else if (cache == DType::kF16) {
      launch<Q, __half>(context, args, p);
    } else if (cache == DType::kBF16) {
      launch<Q, __nv_bfloat16>(context, args, p);
    } else {
      launch<Q, signed char>(context, args, p);
    }
    join_parts<Q>(context, args, p);
  });
}

}  // namespace spb::ops
