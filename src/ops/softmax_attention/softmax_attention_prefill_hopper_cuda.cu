// Prefill on Hopper: two warpgroups multiply, 64 queries each, while a third one has keys and
// values copied to shared memory (softmax_attention_prefill_hopper.cuh), tile by tile of 128 keys.
//
// A group works on the softmax of a tile while its products with the values of the tile before go
// on, and while the other group multiplies. As many blocks as there are multiprocessors work off
// all queries, so that the tiles of the next ones come while the last ones are finished.
#include <algorithm>

#include "core/cuda/fast_math.cuh"
#include "ops/softmax_attention/softmax_attention_prefill_hopper.cuh"

namespace spb::ops {
namespace {

using namespace prefill;

constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
constexpr float kRise = 8;  // of scores in powers of 2, before a new maximum is taken

// What a thread knows of its two queries: rows quad and quad + 8 of its warp's 16.
template <int kDim>
struct Sums {
  float values[kDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float weight[2] = {};
};

using Scores = float[kTileKeys / 8][4];

// Starts the products of queries and keys.
template <int kDim>
__device__ void start_scores(const Shared<kDim>& shared, int group, int stage, Scores& scores) {
  cuda::begin_products();
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const int offset = step % 4 * 32;
    const uint64_t q = cuda::describe_tile(shared.q[group][step / 4] + offset, 0);
    const uint64_t k = cuda::describe_tile(shared.tiles[0][stage][step / 4] + offset, 0);
    cuda::multiply_64x128(scores, q, k, step > 0);
  }
  cuda::commit_products();
}

// The keys of a tile that a query sees.
struct Range {
  int begin;
  int end;
};

// Of the first of a warp's queries; the next one sees one further. `seen` positions lie before the
// end of what it sees.
__device__ Range visible_range(const VisibleKeys& visible, int sink_tiles, int t, int seen) {
  if (t < sink_tiles) return {-kTileKeys, static_cast<int>(visible.sinks.capacity) - t * kTileKeys};
  const int end = seen - (t - sink_tiles) * kTileKeys;
  const int64_t begin = end - visible.window;
  return {static_cast<int>(max(begin, -int64_t{kTileKeys})), end};
}

// Scores of keys that a query does not see become -infinity.
__device__ void mask(Range range, bool sinks, int lane, Scores& scores) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int further = sinks ? 0 : half * 8 + lane / 4;
#pragma unroll
    for (int i = 0; i < kTileKeys / 4; ++i) {
      const int key = i / 2 * 8 + lane % 4 * 2 + i % 2 - further;
      if (key < range.begin || key >= range.end) scores[i / 2][half * 2 + i % 2] = -INFINITY;
    }
  }
}

// Most tiles are seen whole.
__device__ void mask_edges(const VisibleKeys& visible, int sink_tiles, int t, int seen, int lane,
                           Scores& scores) {
  constexpr int kQueriesOfWarp = 16;
  const Range range = visible_range(visible, sink_tiles, t, seen);
  if (range.begin + kQueriesOfWarp > 0 || range.end < kTileKeys) {
    mask(range, t < sink_tiles, lane, scores);
  }
}

// Scores -> softmax weights against the running maximum. Returns by what the sums of earlier tiles
// are to be multiplied.
template <int kDim>
__device__ float2 weigh(const PrefillProblem& p, Scores& scores, Sums<kDim>& sums) {
  float factors[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = sums.largest[half];
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
      largest = fmaxf(largest, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(cuda::kFullWarp, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(cuda::kFullWarp, largest, 2));
    const float before = sums.largest[half];
    // Weights of up to 2^kRise are as exact as those up to 1, and sums rarely need scaling.
    if ((largest - before) * p.scale_log2 <= kRise) largest = before;
    // Nothing seen yet: any finite number keeps the differences from being NaN.
    const float base = largest == -INFINITY ? 0.0f : largest * p.scale_log2;
    factors[half] = largest == before ? 1.0f : cuda::fast_exp2(before * p.scale_log2 - base);
    sums.largest[half] = largest;
    float weight = 0;
#pragma unroll
    for (int i = 0; i < kTileKeys / 4; ++i) {
      float& s = scores[i / 2][half * 2 + i % 2];
      s = cuda::fast_exp2(s * p.scale_log2 - base);
      weight += s;
    }
    sums.weight[half] = sums.weight[half] * factors[half] + weight;
  }
  return {factors[0], factors[1]};
}

// Softmax weights as the first operand of products.
using Weights = uint32_t[kTileKeys / 16][4];

__device__ void pack(const Scores& scores, Weights& weights) {
#pragma unroll
  for (int step = 0; step < kTileKeys / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &scores[2 * step + i / 2][i % 2 * 2];
      weights[step][i] = cuda::pack_bf16(pair[0], pair[1]);
    }
  }
}

// Starts the products of weights and values.
template <int kDim>
__device__ void start_values(const Shared<kDim>& shared, int stage, const Weights& weights,
                             Sums<kDim>& sums) {
  constexpr int kNextColumns = kTileKeys * 128;
  cuda::begin_products();
#pragma unroll
  for (int step = 0; step < kTileKeys / 16; ++step) {
    const uint64_t v =
        cuda::describe_tile(shared.tiles[1][stage][0] + step * 16 * 128, kNextColumns);
    if constexpr (kDim == 128) {
      cuda::multiply_add_64x128(sums.values, weights[step], v);
    } else {
      cuda::multiply_add_64x64(sums.values, weights[step], v);
    }
  }
  cuda::commit_products();
}

template <int kDim>
__device__ void scale(float2 factors, Sums<kDim>& sums) {
  if (__all_sync(cuda::kFullWarp, factors.x == 1.0f && factors.y == 1.0f)) return;
#pragma unroll
  for (int i = 0; i < kDim / 4; ++i) {
    sums.values[i / 2][i % 2] *= factors.x;
    sums.values[i / 2][2 + i % 2] *= factors.y;
  }
}

template <int kDim>
__device__ void write(const PrefillProblem& p, const Sums<kDim>& sums, int first, int head,
                      int lane) {
  const int pair = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float weight = sums.weight[half];
    weight += __shfl_xor_sync(cuda::kFullWarp, weight, 1);
    weight += __shfl_xor_sync(cuda::kFullWarp, weight, 2);
    const int64_t query = first + half * 8;
    __nv_bfloat16* o = p.o + (query * p.heads + head) * kDim;
    const float factor = 1.0f / weight;
#pragma unroll
    for (int four = 0; four < kDim / 32; ++four) {
      uint32_t words[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float* two = &sums.values[four * 4 + n][half * 2];
        words[n] = cuda::pack_bf16(two[0] * factor, two[1] * factor);
      }
      cuda::gather_outputs(words, pair);
      if (query >= p.tokens) continue;
      *reinterpret_cast<uint4*>(o + (four * 4 + pair) * 8) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// A multiplying warpgroup with its 64 queries of an item. The loop begins where products end that
// the softmax at its end went beside: within a block of code the compiler would wait for them
// before the softmax.
template <int kDim>
__device__ void attend(Shared<kDim>& shared, const PrefillProblem& p, const Item& item, int group,
                       Turn& turn) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int row = group * kGroupQueries + static_cast<int>(threadIdx.x) / cuda::kWarpSize % 4 * 16;
  const int seen = item.seen + row;
  Sums<kDim> sums;
  Scores scores;
  Weights weights;
  cuda::wait_for(&shared.full[0][turn.stage], turn.round & 1);
  start_scores(shared, group, turn.stage, scores);
  cuda::wait_for_products<0>();
  release(&shared.empty[0][turn.stage]);
  mask_edges(p.visible, item.sink_tiles, 0, seen, lane, scores);
  float2 factors = weigh(p, scores, sums);
  int read = -1;  // the stage of the values that products go on with
  for (int t = 1; t < item.count; ++t) {
    cuda::wait_for_products<0>();
    if (read >= 0) release(&shared.empty[1][read]);
    scale(factors, sums);
    pack(scores, weights);
    read = turn.stage;
    const int parity = turn.round & 1;
    turn.next();
    cuda::wait_for(&shared.full[0][turn.stage], turn.round & 1);
    cuda::wait_for(&shared.full[1][read], parity);
    start_scores(shared, group, turn.stage, scores);
    start_values(shared, read, weights, sums);
    cuda::wait_for_products<1>();
    release(&shared.empty[0][turn.stage]);
    mask_edges(p.visible, item.sink_tiles, t, seen, lane, scores);
    factors = weigh(p, scores, sums);
  }
  cuda::wait_for_products<0>();
  release(&shared.q_empty);
  if (read >= 0) release(&shared.empty[1][read]);
  scale(factors, sums);
  pack(scores, weights);
  cuda::wait_for(&shared.full[1][turn.stage], turn.round & 1);
  start_values(shared, turn.stage, weights, sums);
  cuda::wait_for_products<0>();
  release(&shared.empty[1][turn.stage]);
  turn.next();
  write(p, sums, item.first + row + lane / 4, item.head, lane);
}

template <int kDim>
__device__ void consume(Shared<kDim>& shared, const Problem& problem, int group) {
  Turn turn;
  for (int round = 0; item_index(round) < problem.items; ++round) {
    const Item item(problem, item_index(round));
    cuda::wait_for(&shared.q_full, round & 1);
    attend(shared, problem.p, item, group, turn);
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(1024) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(storage);
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * kStages; ++i) {
      cuda::start_barrier(&shared.full[i % 2][i / 2], 1);
      cuda::start_barrier(&shared.empty[i % 2][i / 2], kConsumerWarps);
    }
    cuda::start_barrier(&shared.q_full, 1);
    cuda::start_barrier(&shared.q_empty, kConsumerWarps);
    cuda::publish_barriers();
  }
  __syncthreads();
  if (group == kConsumers) {
    cuda::give_registers<kProducerRegisters>();
    produce(shared, problem, static_cast<int>(threadIdx.x) % kGroupThreads);
  } else {
    cuda::take_registers<kConsumerRegisters>();
    consume(shared, problem, group);
  }
}

template <int kDim>
void launch(Context& context, const PrefillProblem& p) {
  constexpr auto kBytes = static_cast<int>(sizeof(Shared<kDim>));
  cuda::allow_shared_memory(context, prefill_kernel<kDim>, kBytes);
  const int64_t columns = int64_t{p.heads} * kDim;
  const auto ring = [&](const std::byte* rows) {
    const int64_t count = p.heads / p.group * p.visible.ring.capacity;
    return rows == nullptr ? CUtensorMap{} : cuda::tensor_map(rows, count, kDim, kDim, kTileKeys);
  };
  const Problem problem{cuda::tensor_map(p.q, p.tokens, columns, columns, kGroupQueries),
                        {ring(p.visible.ring.keys), ring(p.visible.ring.values)},
                        p,
                        static_cast<int>(p.heads * cuda::ceil_divide(p.tokens, kQueries))};
  const int blocks = std::min(problem.items, context.stream().multiprocessors());
  prefill_kernel<kDim>
      <<<static_cast<unsigned>(blocks), kThreads, kBytes, cuda::stream_of(context)>>>(problem);
  cuda::check_launch("softmax_attention: prefill");
}

}  // namespace

void softmax_attention_prefill_warpgroups(Context& context, const PrefillProblem& problem) {
  problem.head_dim == 64 ? launch<64>(context, problem) : launch<128>(context, problem);
}

}  // namespace spb::ops
