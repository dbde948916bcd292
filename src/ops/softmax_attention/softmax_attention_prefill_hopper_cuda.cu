// Prefill on Hopper: two warpgroups multiply, 64 queries each, while a third one copies keys and
// values to shared memory, tile by tile of 128 keys.
//
// The groups meet only through barriers of tiles, so that one works on its softmax while the other
// keeps the tensor cores busy. Masking and the running softmax are those of
// softmax_attention_prefill_cuda.cu.
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
  unsigned char keys[kStages][kParts][kTileKeys * 128];
  unsigned char values[kStages][kParts][kTileKeys * 128];
  cuda::Barrier full[kStages];
  cuda::Barrier empty[kStages];
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
__device__ void copy_tile(Shared<kDim>& shared, int stage, const Tile& tile, int kv_head,
                          int thread) {
  const int64_t capacity = tile.rows->capacity;
  const int64_t start = tile.first % capacity;
  const int64_t offset = (kv_head * capacity + start) * kDim;
  // Rows from here on lie at the ring's beginning.
  const int wrap = static_cast<int>(min(capacity - start, int64_t{kTileKeys}));
  const int valid_rows = static_cast<int>(min(tile.end - tile.first, int64_t{kTileKeys}));
  for (int side = 0; side < 2; ++side) {
    const std::byte* rows = side == 0 ? tile.rows->keys : tile.rows->values;
    const auto* first = reinterpret_cast<const __nv_bfloat16*>(rows) + offset;
    const auto* wrapped = first - capacity * kDim;
    copy_rows<kDim, kTileKeys>(
        side == 0 ? shared.keys[stage] : shared.values[stage], thread, valid_rows,
        [&](int row) { return (row < wrap ? first : wrapped) + row * kDim; });
  }
  cuda::commit_copies();
}

// The copying warpgroup. A tile is handed over when the copies of the next one are under way.
template <int kDim>
__device__ void produce(Shared<kDim>& shared, const PrefillProblem& p, const KeyTiles& tiles,
                        int kv_head, int thread) {
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int stage = static_cast<int>(t % kStages);
    if (t >= kStages) cuda::wait_for(&shared.empty[stage], static_cast<int>(t / kStages - 1) & 1);
    copy_tile(shared, stage, tiles.at(p.visible, t), kv_head, thread);
    if (t == 0) continue;
    cuda::wait_for_copies<1>();
    cuda::publish_writes();
    cuda::arrive(&shared.full[(t - 1) % kStages]);
  }
  cuda::wait_for_copies<0>();
  cuda::publish_writes();
  cuda::arrive(&shared.full[(tiles.count - 1) % kStages]);
}

// What a thread knows of its two queries: rows quad and quad + 8 of its warp's 16.
template <int kDim>
struct Sums {
  float values[kDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float weight[2] = {};
};

using Scores = float[kTileKeys / 8][4];

template <int kDim>
__device__ void score(const Shared<kDim>& shared, int group, int stage, Scores& scores) {
  cuda::begin_products();
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const int offset = step % 4 * 32;
    const uint64_t q = cuda::describe_tile(shared.q[group][step / 4] + offset, 0);
    const uint64_t k = cuda::describe_tile(shared.keys[stage][step / 4] + offset, 0);
    cuda::multiply_64x128(scores, q, k, step > 0);
  }
  cuda::finish_products();
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

// Scores -> softmax weights against the running maximum, to which the sums are brought.
template <int kDim>
__device__ void weigh(const PrefillProblem& p, Scores& scores, Sums<kDim>& sums) {
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
    const float before = cuda::fast_exp2(sums.largest[half] * p.scale_log2 - base);
    sums.largest[half] = largest;
    float weight = 0;
#pragma unroll
    for (int i = 0; i < kTileKeys / 4; ++i) {
      float& s = scores[i / 2][half * 2 + i % 2];
      s = cuda::fast_exp2(s * p.scale_log2 - base);
      weight += s;
    }
    sums.weight[half] = sums.weight[half] * before + weight;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) sums.values[i / 2][half * 2 + i % 2] *= before;
  }
}

template <int kDim>
__device__ void add_values(const Shared<kDim>& shared, int stage, const Scores& weights,
                           Sums<kDim>& sums) {
  constexpr int kNextColumns = kTileKeys * 128;
  uint32_t p[kTileKeys / 16][4];
#pragma unroll
  for (int step = 0; step < kTileKeys / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &weights[2 * step + i / 2][i % 2 * 2];
      p[step][i] = cuda::pack_bf16(pair[0], pair[1]);
    }
  }
  cuda::begin_products();
#pragma unroll
  for (int step = 0; step < kTileKeys / 16; ++step) {
    const uint64_t v = cuda::describe_tile(shared.values[stage][0] + step * 16 * 128, kNextColumns);
    if constexpr (kDim == 128) {
      cuda::multiply_add_64x128(sums.values, p[step], v);
    } else {
      cuda::multiply_add_64x64(sums.values, p[step], v);
    }
  }
  cuda::finish_products();
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
  Sums<kDim> sums;
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int stage = static_cast<int>(t % kStages);
    const Tile tile = tiles.at(p.visible, t);
    const bool whole = tile.first + kTileKeys <= tile.end &&
                       (tile.sinks || (tile.first >= p.visible.begin(last) &&
                                       tile.first + kTileKeys <= p.visible.end(first)));
    cuda::wait_for(&shared.full[stage], static_cast<int>(t / kStages) & 1);
    Scores scores;
    score(shared, group, stage, scores);
    if (!whole) mask(p, tile, queries, lane, scores);
    weigh(p, scores, sums);
    add_values(shared, stage, scores, sums);
    cuda::arrive(&shared.empty[stage]);
  }
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
    for (int stage = 0; stage < kStages; ++stage) {
      cuda::start_barrier(&shared.full[stage], kGroupThreads);
      cuda::start_barrier(&shared.empty[stage], kGroupThreads * kConsumers);
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
