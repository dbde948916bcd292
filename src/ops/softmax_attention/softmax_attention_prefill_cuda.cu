// Prefill on tensor cores: a block takes 128 queries of one head and walks over tiles of 64 keys.
//
// Scores, softmax weights and sums stay in registers, in the layout of core/cuda/mma.cuh: the
// scores of a warp's 32 queries are, rounded to bf16, the first operand of the product with the
// values. Two tiles are in shared memory, one in use and one on its way. Tiles that no query of the
// block sees are not visited; only tiles that some query sees in part are masked.
#include "core/cuda/fast_math.cuh"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/softmax_attention/softmax_attention_keys.cuh"

namespace spb::ops {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * cuda::kWarpSize;
constexpr int kQueries = 128;
constexpr int kBands = 2;  // of 16 queries, for each warp
constexpr int kTileKeys = 64;
constexpr int kStepKeys = 32;  // keys whose scores are in registers at once
constexpr int kPadding = 8;    // elements after a row in shared memory: no bank conflicts

using KeyTiles = Tiles<kTileKeys>;

template <int kDim>
struct Shared {
  static constexpr int kRow = kDim + kPadding;
  __nv_bfloat16 q[kQueries][kRow];
  __nv_bfloat16 keys[2][kTileKeys][kRow];
  __nv_bfloat16 values[2][kTileKeys][kRow];
};

template <int kDim>
__device__ void fetch_queries(Shared<kDim>& shared, const PrefillProblem& p, int64_t first,
                              int head) {
  constexpr int kPieces = kDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * kPieces; i += kThreads) {
    const int row = i / kPieces;
    const int column = i % kPieces * 8;
    const bool valid = first + row < p.tokens;
    const int64_t token = valid ? first + row : 0;
    cuda::copy_async<16>(&shared.q[row][column], p.q + (token * p.heads + head) * kDim + column,
                         valid);
  }
}

template <int kDim>
__device__ void fetch_tile(Shared<kDim>& shared, int buffer, const Tile& tile, int kv_head) {
  constexpr int kPieces = kDim / 8;
  const int64_t capacity = tile.rows->capacity;
  const int64_t start = tile.first % capacity;
  const auto* keys = reinterpret_cast<const __nv_bfloat16*>(tile.rows->keys);
  const auto* values = reinterpret_cast<const __nv_bfloat16*>(tile.rows->values);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kTileKeys * kPieces; i += kThreads) {
    const int row = i / kPieces;
    const int column = i % kPieces * 8;
    const bool valid = tile.first + row < tile.end;
    // A ring may be shorter than a tile only where the keys beyond it are not valid.
    int64_t slot = valid ? start + row : 0;
    if (slot >= capacity) slot -= capacity;
    const int64_t offset = (kv_head * capacity + slot) * kDim + column;
    cuda::copy_async<16>(&shared.keys[buffer][row][column], keys + offset, valid);
    cuda::copy_async<16>(&shared.values[buffer][row][column], values + offset, valid);
  }
}

// What a warp knows of its 32 queries; [band][half]: rows quad and quad + 8 of the band.
template <int kDim>
struct Sums {
  float values[kBands][kDim / 8][4] = {};
  float largest[kBands][2];
  float weight[kBands][2] = {};
};

using Scores = float[kBands][kStepKeys / 8][4];

template <int kDim>
__device__ void score(const Shared<kDim>& shared, int buffer, int first_key, int warp, int lane,
                      Scores& scores) {
#pragma unroll
  for (int column = 0; column < kDim; column += 16) {
    uint32_t q[kBands][4];
#pragma unroll
    for (int band = 0; band < kBands; ++band) {
      const int row = warp * kBands * 16 + band * 16 + lane % 16;
      cuda::load_matrices(q[band], &shared.q[row][column + lane / 16 * 8]);
    }
#pragma unroll
    for (int n = 0; n < kStepKeys / 16; ++n) {
      uint32_t k[4];  // keys 0-7 and 8-15, columns 0-7 and 8-15 of each
      const int key = first_key + n * 16 + lane / 16 * 8 + lane % 8;
      cuda::load_matrices(k, &shared.keys[buffer][key][column + lane / 8 % 2 * 8]);
#pragma unroll
      for (int band = 0; band < kBands; ++band) {
        cuda::mma_bf16(scores[band][2 * n], q[band], k[0], k[1]);
        cuda::mma_bf16(scores[band][2 * n + 1], q[band], k[2], k[3]);
      }
    }
  }
}

// Scores of keys that a query does not see become -infinity.
__device__ void mask(const PrefillProblem& p, const Tile& tile, int64_t first_query, int first_key,
                     int warp, int lane, Scores& scores) {
#pragma unroll
  for (int row = 0; row < kBands * 2; ++row) {
    const int64_t query = first_query + warp * kBands * 16 + row * 8 + lane / 4;
    const int64_t begin = tile.sinks ? 0 : p.visible.begin(query);
    const int64_t end = tile.sinks ? tile.end : p.visible.end(query);
#pragma unroll
    for (int i = 0; i < kStepKeys / 4; ++i) {
      const int64_t key = tile.first + first_key + i / 2 * 8 + lane % 4 * 2 + i % 2;
      if (key < begin || key >= end) scores[row / 2][i / 2][row % 2 * 2 + i % 2] = -INFINITY;
    }
  }
}

// Scores -> softmax weights against the running maximum, to which the sums are brought.
template <int kDim>
__device__ void weigh(const PrefillProblem& p, Scores& scores, Sums<kDim>& sums) {
#pragma unroll
  for (int row = 0; row < kBands * 2; ++row) {
    const int band = row / 2;
    const int half = row % 2;
    float largest = sums.largest[band][half];
#pragma unroll
    for (int n = 0; n < kStepKeys / 8; ++n) {
      largest = fmaxf(largest, fmaxf(scores[band][n][half * 2], scores[band][n][half * 2 + 1]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(cuda::kFullWarp, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(cuda::kFullWarp, largest, 2));
    // Nothing seen yet: any finite number keeps the differences from being NaN.
    const float base = largest == -INFINITY ? 0.0f : largest * p.scale_log2;
    const float before = cuda::fast_exp2(sums.largest[band][half] * p.scale_log2 - base);
    sums.largest[band][half] = largest;
    float weight = 0;
#pragma unroll
    for (int i = 0; i < kStepKeys / 4; ++i) {
      float& s = scores[band][i / 2][half * 2 + i % 2];
      s = cuda::fast_exp2(s * p.scale_log2 - base);
      weight += s;
    }
    sums.weight[band][half] = sums.weight[band][half] * before + weight;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) sums.values[band][i / 2][half * 2 + i % 2] *= before;
  }
}

template <int kDim>
__device__ void add_values(const Shared<kDim>& shared, int buffer, int first_key, int lane,
                           const Scores& weights, Sums<kDim>& sums) {
#pragma unroll
  for (int k = 0; k < kStepKeys / 16; ++k) {
    uint32_t p[kBands][4];
#pragma unroll
    for (int band = 0; band < kBands; ++band) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &weights[band][2 * k + i / 2][i % 2 * 2];
        p[band][i] = cuda::pack_bf16(pair[0], pair[1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t v[4];
      const int key = first_key + k * 16 + lane % 16;
      cuda::load_matrices_transposed(v, &shared.values[buffer][key][n * 16 + lane / 16 * 8]);
#pragma unroll
      for (int band = 0; band < kBands; ++band) {
        cuda::mma_bf16(sums.values[band][2 * n], p[band], v[0], v[1]);
        cuda::mma_bf16(sums.values[band][2 * n + 1], p[band], v[2], v[3]);
      }
    }
  }
}

template <int kDim>
__device__ void write(const PrefillProblem& p, Sums<kDim>& sums, int64_t first_query, int head,
                      int warp, int lane) {
#pragma unroll
  for (int band = 0; band < kBands; ++band) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float weight = sums.weight[band][half];
      weight += __shfl_xor_sync(cuda::kFullWarp, weight, 1);
      weight += __shfl_xor_sync(cuda::kFullWarp, weight, 2);
      const int64_t query = first_query + warp * kBands * 16 + band * 16 + half * 8 + lane / 4;
      if (query >= p.tokens) continue;
      auto* to = reinterpret_cast<uint32_t*>(p.o + (query * p.heads + head) * kDim);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float* pair = &sums.values[band][n][half * 2];
        to[n * 4 + lane % 4] = cuda::pack_bf16(pair[0] / weight, pair[1] / weight);
      }
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    prefill_kernel(const __grid_constant__ PrefillProblem p) {
  extern __shared__ __align__(16) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(storage);
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int head = static_cast<int>(blockIdx.x);
  const int kv_head = head / p.group;
  // The last queries see most without a window: they start first.
  const int64_t first_query = int64_t{gridDim.y - 1 - blockIdx.y} * kQueries;
  const int64_t last_query = min(first_query + kQueries, p.tokens) - 1;
  const KeyTiles tiles(p.visible, first_query, last_query);
  Sums<kDim> sums;
#pragma unroll
  for (int band = 0; band < kBands; ++band) {
    sums.largest[band][0] = sums.largest[band][1] = -INFINITY;
  }
  fetch_queries(shared, p, first_query, head);
  fetch_tile(shared, 0, tiles.at(p.visible, 0), kv_head);
  cuda::commit_copies();
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int buffer = static_cast<int>(t % 2);
    cuda::wait_for_copies<0>();
    __syncthreads();  // the tile is there, and nobody reads the other buffer any more
    if (t + 1 < tiles.count) {
      fetch_tile(shared, 1 - buffer, tiles.at(p.visible, t + 1), kv_head);
      cuda::commit_copies();
    }
    const Tile tile = tiles.at(p.visible, t);
    const bool whole = tile.first + kTileKeys <= tile.end &&
                       (tile.sinks || (tile.first >= p.visible.begin(last_query) &&
                                       tile.first + kTileKeys <= p.visible.end(first_query)));
#pragma unroll 1
    for (int key = 0; key < kTileKeys; key += kStepKeys) {
      Scores scores = {};
      score(shared, buffer, key, warp, lane, scores);
      if (!whole) mask(p, tile, first_query, key, warp, lane, scores);
      weigh(p, scores, sums);
      add_values(shared, buffer, key, lane, scores, sums);
    }
  }
  write(p, sums, first_query, head, warp, lane);
}

template <int kDim>
void launch(Context& context, const PrefillProblem& p) {
  constexpr auto kBytes = static_cast<int>(sizeof(Shared<kDim>));
  cuda::allow_shared_memory(context, prefill_kernel<kDim>, kBytes);
  const dim3 blocks(static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(cuda::ceil_divide(p.tokens, kQueries)));
  prefill_kernel<kDim><<<blocks, kThreads, kBytes, cuda::stream_of(context)>>>(p);
  cuda::check_launch("softmax_attention: prefill");
}

// A tile must not wrap around a ring twice.
bool long_enough(ConstTensorView keys, int64_t tile_keys) {
  return !keys.defined() || keys.shape()[1] >= tile_keys;
}

// The copy engine counts rows in 32 bits.
bool rows_counted(ConstTensorView keys) {
  return !keys.defined() || keys.shape()[0] * keys.shape()[1] < int64_t{1} << 31;
}

// On Hopper, with enough queries to fill its larger tiles.
bool use_warpgroups(Context& context, const SoftmaxAttentionArgs& args) {
  return context.stream().is_hopper() && args.q.shape()[0] >= kQueries &&
         args.q.shape().elements() < int64_t{1} << 31 &&
         long_enough(args.keys, kWarpgroupTileKeys) && rows_counted(args.keys) &&
         rows_counted(args.sink_keys);
}

PrefillProblem prefill_problem(const SoftmaxAttentionArgs& args) {
  constexpr float kLog2E = 1.44269504f;
  const Shape& q = args.q.shape();
  const Shape& keys = args.keys.defined() ? args.keys.shape() : args.sink_keys.shape();
  return {visible_keys(args),
          reinterpret_cast<const __nv_bfloat16*>(args.q.data()),
          reinterpret_cast<__nv_bfloat16*>(args.o.data()),
          q[0],
          static_cast<int>(q[1]),
          static_cast<int>(q[1] / keys[0]),
          static_cast<int>(q[2]),
          args.scale * kLog2E};
}

}  // namespace

bool prefill_tiles_fit(const SoftmaxAttentionArgs& args) {
  constexpr int64_t kMinTokens = 32;
  const Shape& q = args.q.shape();
  return q[0] >= kMinTokens && (q[2] == 64 || q[2] == 128) && args.q.dtype() == DType::kBF16 &&
         long_enough(args.keys, kTileKeys) && args.q.contiguous() && args.o.contiguous();
}

void softmax_attention_prefill_tiles(Context& context, const SoftmaxAttentionArgs& args) {
  if (any_keys(args).dtype() != DType::kBF16) {
    const Arena::Scope scope(context.arena());
    return softmax_attention_prefill_tiles(context, with_bf16_keys(context, args));
  }
  const PrefillProblem p = prefill_problem(args);
  if (use_warpgroups(context, args)) return softmax_attention_prefill_warpgroups(context, p);
  p.head_dim == 64 ? launch<64>(context, p) : launch<128>(context, p);
}

}  // namespace spb::ops
