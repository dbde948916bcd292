// Prefill on Hopper: two warpgroups multiply, 64 queries each, while a third one copies keys and
// values to shared memory, tile by tile of 128 keys.
//
// A group works on the softmax of a tile while its products with the values of the tile before go
// on, and while the other group multiplies: they take turns. Masking and the running softmax are
// those of softmax_attention_prefill_cuda.cu.
#include "core/cuda/reduce.cuh"
#include "core/cuda/wgmma.cuh"
#include "ops/softmax_attention/softmax_attention_keys.cuh"

namespace spb::ops {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kConsumers = 2;
constexpr int kThreads = kGroupThreads * (kConsumers + 1);
constexpr int kGroupQueries = 64;
constexpr int kQueries = kGroupQueries * kConsumers;
constexpr int kTileKeys = kWarpgroupTileKeys;
constexpr int kStages = 3;
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;

using KeyTiles = Tiles<kTileKeys>;

// Columns in parts of 64, each a tile of wgmma.cuh.
template <int kDim>
struct Shared {
  static constexpr int kParts = kDim / 64;
  unsigned char q[kConsumers][kParts][kGroupQueries * 128];
  unsigned char tiles[2][kStages][kParts][kTileKeys * 128];  // keys, values
  cuda::Barrier full[2][kStages];
  cuda::Barrier empty[2][kStages];
};

// Copies kRows rows of kDim elements into tiles, 16 bytes at a time: a thread keeps its piece and
// takes every kStep-th row. `valid_rows` of them exist; row_at(row) is where one begins.
template <int kDim, int kRows, typename RowAt>
__device__ void copy_rows(unsigned char (*parts)[kRows * 128], int thread, int valid_rows,
                          RowAt row_at) {
  constexpr int kPieces = kDim / 8;
  constexpr int kStep = kGroupThreads / kPieces;
  const int piece = thread % kPieces;
  unsigned char* part = parts[piece / 8];
#pragma unroll 4
  for (int i = 0; i < kRows / kStep; ++i) {
    const int row = thread / kPieces + i * kStep;
    const bool valid = row < valid_rows;
    cuda::copy_async<16>(part + cuda::swizzled(row, piece % 8), row_at(valid ? row : 0) + piece * 8,
                         valid);
  }
}

template <int kDim>
__device__ void copy_tile(Shared<kDim>& shared, int side, int stage, const Tile& tile, int kv_head,
                          int thread) {
  const int64_t capacity = tile.rows->capacity;
  const int64_t start = tile.first % capacity;
  // Rows from here on lie at the ring's beginning.
  const int wrap = static_cast<int>(min(capacity - start, int64_t{kTileKeys}));
  const int valid_rows = static_cast<int>(min(tile.end - tile.first, int64_t{kTileKeys}));
  const std::byte* rows = side == 0 ? tile.rows->keys : tile.rows->values;
  const auto* first =
      reinterpret_cast<const __nv_bfloat16*>(rows) + (kv_head * capacity + start) * kDim;
  const auto* wrapped = first - capacity * kDim;
  copy_rows<kDim, kTileKeys>(shared.tiles[side][stage], thread, valid_rows,
                             [&](int row) { return (row < wrap ? first : wrapped) + row * kDim; });
  cuda::commit_copies();
}

// The copying warpgroup: keys and values of a tile in turns. One is handed over when the copies of
// the next are under way, or when there is no room for these yet.
template <int kDim>
__device__ void produce(Shared<kDim>& shared, const PrefillProblem& p, const KeyTiles& tiles,
                        int kv_head, int thread) {
  cuda::Barrier* waiting = nullptr;  // for the copies asked for last
  const auto hand_over = [&] {
    cuda::publish_writes();
    cuda::arrive(waiting);
  };
  for (int64_t i = 0; i < 2 * tiles.count; ++i) {
    const int64_t t = i / 2;
    const int side = static_cast<int>(i % 2);
    const int stage = static_cast<int>(t % kStages);
    cuda::Barrier* empty = &shared.empty[side][stage];
    const int parity = static_cast<int>(t / kStages - 1) & 1;
    if (t >= kStages && !cuda::has_ended(empty, parity)) {
      cuda::wait_for_copies<0>();
      hand_over();
      waiting = nullptr;
      cuda::wait_for(empty, parity);
    }
    copy_tile(shared, side, stage, tiles.at(p.visible, t), kv_head, thread);
    if (waiting != nullptr) {
      cuda::wait_for_copies<1>();
      hand_over();
    }
    waiting = &shared.full[side][stage];
  }
  cuda::wait_for_copies<0>();
  hand_over();
}

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

__device__ void mask(const PrefillProblem& p, const Tile& tile, const int64_t (&queries)[2],
                     int lane, Scores& scores) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t begin = tile.sinks ? 0 : p.visible.begin(queries[half]);
    const int64_t end = tile.sinks ? tile.end : p.visible.end(queries[half]);
    // Within the tile, so that comparisons are of small numbers.
    const int low = static_cast<int>(max(begin - tile.first, int64_t{0}));
    const int high = static_cast<int>(min(max(end - tile.first, int64_t{0}), int64_t{kTileKeys}));
#pragma unroll
    for (int i = 0; i < kTileKeys / 4; ++i) {
      const int key = i / 2 * 8 + lane % 4 * 2 + i % 2;
      if (key < low || key >= high) scores[i / 2][half * 2 + i % 2] = -INFINITY;
    }
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
    // Nothing seen yet: any finite number keeps the differences from being NaN.
    const float base = largest == -INFINITY ? 0.0f : largest * p.scale_log2;
    factors[half] = cuda::fast_exp2(sums.largest[half] * p.scale_log2 - base);
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
#pragma unroll
  for (int i = 0; i < kDim / 4; ++i) {
    sums.values[i / 2][i % 2] *= factors.x;
    sums.values[i / 2][2 + i % 2] *= factors.y;
  }
}

template <int kDim>
__device__ void write(const PrefillProblem& p, const Sums<kDim>& sums, const int64_t (&queries)[2],
                      int head, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float weight = sums.weight[half];
    weight += __shfl_xor_sync(cuda::kFullWarp, weight, 1);
    weight += __shfl_xor_sync(cuda::kFullWarp, weight, 2);
    if (queries[half] >= p.tokens) continue;
    auto* to = reinterpret_cast<uint32_t*>(p.o + (queries[half] * p.heads + head) * kDim);
    const float factor = 1.0f / weight;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float* pair = &sums.values[n][half * 2];
      to[n * 4 + lane % 4] = cuda::pack_bf16(pair[0] * factor, pair[1] * factor);
    }
  }
}

// The groups start their products in turns, so that one's softmax falls into the products of the
// other: started together they would end together.
__device__ void wait_for_turn(int group) {
  group == 0 ? cuda::wait_for_turn<3>() : cuda::wait_for_turn<4>();
}
__device__ void pass_turn(int group) { group == 0 ? cuda::pass_turn<4>() : cuda::pass_turn<3>(); }

// A multiplying warpgroup with the 64 queries from `first` on.
template <int kDim>
__device__ void consume(Shared<kDim>& shared, const PrefillProblem& p, const KeyTiles& tiles,
                        int64_t first, int head, int group, int thread) {
  const int lane = thread % cuda::kWarpSize;
  const int64_t present = min(max(p.tokens - first, int64_t{0}), int64_t{kGroupQueries});
  const __nv_bfloat16* q = p.q + ((present > 0 ? first : 0) * p.heads + head) * kDim;
  copy_rows<kDim, kGroupQueries>(shared.q[group], thread, static_cast<int>(present),
                                 [&](int row) { return q + int64_t{row} * p.heads * kDim; });
  cuda::commit_copies();
  cuda::wait_for_copies<0>();
  cuda::publish_writes();
  group == 0 ? cuda::meet_group<1>() : cuda::meet_group<2>();
  const int64_t row = first + thread / cuda::kWarpSize * 16 + lane / 4;
  const int64_t queries[2] = {row, row + 8};
  const int64_t last = min(first + kGroupQueries, p.tokens) - 1;
  const auto mask_edges = [&](int64_t t, Scores& scores) {
    const Tile tile = tiles.at(p.visible, t);
    const bool whole = tile.first + kTileKeys <= tile.end &&
                       (tile.sinks || (tile.first >= p.visible.begin(last) &&
                                       tile.first + kTileKeys <= p.visible.end(first)));
    if (!whole) mask(p, tile, queries, lane, scores);
  };
  const auto wait_for_tile = [&](int side, int64_t t) {
    cuda::wait_for(&shared.full[side][t % kStages], static_cast<int>(t / kStages) & 1);
  };
  if (group == 1) pass_turn(group);  // the other one begins
  Sums<kDim> sums;
  Scores scores;
  Weights weights;
  wait_for_tile(0, 0);
  wait_for_turn(group);
  start_scores(shared, group, 0, scores);
  if (group == 0 || tiles.count > 1) pass_turn(group);
  cuda::wait_for_products<0>();
  cuda::arrive(&shared.empty[0][0]);
  mask_edges(0, scores);
  weigh(p, scores, sums);
  pack(scores, weights);
  for (int64_t t = 1; t < tiles.count; ++t) {
    const int stage = static_cast<int>(t % kStages);
    const int before = static_cast<int>((t - 1) % kStages);
    wait_for_tile(0, t);
    wait_for_tile(1, t - 1);
    wait_for_turn(group);
    start_scores(shared, group, stage, scores);
    start_values(shared, before, weights, sums);
    if (group == 0 || t + 1 < tiles.count) pass_turn(group);
    cuda::wait_for_products<1>();
    cuda::arrive(&shared.empty[0][stage]);
    mask_edges(t, scores);
    const float2 factors = weigh(p, scores, sums);
    cuda::wait_for_products<0>();
    cuda::arrive(&shared.empty[1][before]);
    scale(factors, sums);
    pack(scores, weights);
  }
  wait_for_tile(1, tiles.count - 1);
  start_values(shared, static_cast<int>((tiles.count - 1) % kStages), weights, sums);
  cuda::wait_for_products<0>();
  write(p, sums, queries, head, lane);
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ PrefillProblem p) {
  extern __shared__ __align__(1024) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(storage);
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int head = static_cast<int>(blockIdx.x);
  // The last queries see most without a window: they start first.
  const int64_t first = int64_t{gridDim.y - 1 - blockIdx.y} * kQueries;
  const KeyTiles tiles(p.visible, first, min(first + kQueries, p.tokens) - 1);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * kStages; ++i) {
      cuda::start_barrier(&shared.full[i % 2][i / 2], kGroupThreads);
      cuda::start_barrier(&shared.empty[i % 2][i / 2], kGroupThreads * kConsumers);
    }
  }
  __syncthreads();
  if (group == kConsumers) {
    cuda::give_registers<kProducerRegisters>();
    produce(shared, p, tiles, head / p.group, thread);
  } else {
    cuda::take_registers<kConsumerRegisters>();
    consume(shared, p, tiles, first + group * kGroupQueries, head, group, thread);
  }
}

template <int kDim>
void launch(Context& context, const PrefillProblem& p) {
  constexpr auto kBytes = static_cast<int>(sizeof(Shared<kDim>));
  cuda::allow_shared_memory(prefill_kernel<kDim>, kBytes);
  const dim3 blocks(static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(cuda::ceil_divide(p.tokens, kQueries)));
  prefill_kernel<kDim><<<blocks, kThreads, kBytes, cuda::stream_of(context)>>>(p);
  cuda::check_launch("softmax_attention: prefill");
}

}  // namespace

void softmax_attention_prefill_warpgroups(Context& context, const PrefillProblem& problem) {
  problem.head_dim == 64 ? launch<64>(context, problem) : launch<128>(context, problem);
}

}  // namespace spb::ops
