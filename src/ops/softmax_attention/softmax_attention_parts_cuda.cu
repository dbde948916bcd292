// Few queries on tensor cores: the query heads that share keys are the 16 rows of a product.
//
// A block takes one token, one key/value head and a part of the keys, in tiles of 64: each of its
// four warps multiplies 16 keys of a tile and keeps sums of its own, joined at the end.
#include "core/cuda/fast_math.cuh"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/softmax_attention/softmax_attention_keys.cuh"

namespace spb::ops {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * cuda::kWarpSize;
constexpr int kRows = 16;  // query heads of a product
constexpr int kWarpKeys = 16;
constexpr int kTileKeys = kWarps * kWarpKeys;
constexpr int kPadding = 8;  // elements after a row in shared memory: no bank conflicts

template <int kDim>
struct Shared {
  static constexpr int kRow = kDim + kPadding;
  union {
    struct {
      __nv_bfloat16 keys[2][kTileKeys][kRow];
      __nv_bfloat16 values[2][kTileKeys][kRow];
    };
    float sums[kWarps][kRows][kDim];
  };
  float largest[kWarps][kRows];
  float weight[kWarps][kRows];
};

// The keys of a block, counted from the first sink.
struct Part {
  const VisibleKeys& visible;
  int64_t begin;  // position of the first key after the sinks
  int64_t first;
  int64_t last;
};

template <int kDim>
__device__ void fetch_tile(Shared<kDim>& shared, int buffer, const Part& part, int64_t first,
                           int kv_head) {
  constexpr int kPieces = kDim / 8;
  const int64_t sinks = part.visible.sinks.capacity;
  // The first ring key of the tile; the others follow it, past the ring's end at its beginning.
  const int64_t ring_key = max(first, sinks);
  const int64_t ring = part.visible.ring.capacity;
  const int64_t start = ring == 0 ? 0 : (part.begin + ring_key - sinks) % ring;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kTileKeys * kPieces; i += kThreads) {
    const int row = i / kPieces;
    const int column = i % kPieces * 8;
    const bool valid = first + row < part.last;
    const int64_t key = valid ? first + row : first;
    const bool sink = key < sinks;
    const KeyRows& source = sink ? part.visible.sinks : part.visible.ring;
    int64_t slot = sink ? key : start + key - ring_key;
    if (!sink && slot >= ring) slot -= ring;
    const int64_t offset = (kv_head * source.capacity + slot) * kDim + column;
    cuda::copy_async<16>(&shared.keys[buffer][row][column],
                         reinterpret_cast<const __nv_bfloat16*>(source.keys) + offset, valid);
    cuda::copy_async<16>(&shared.values[buffer][row][column],
                         reinterpret_cast<const __nv_bfloat16*>(source.values) + offset, valid);
  }
  cuda::commit_copies();
}

// Rows quad and quad + 8 of the group's queries, as the first operand of products.
template <int kDim>
__device__ void read_queries(const __nv_bfloat16* q, int group, int lane,
                             uint32_t (&rows)[kDim / 16][4]) {
#pragma unroll
  for (int i = 0; i < kDim / 4; ++i) {
    const int row = lane / 4 + i % 2 * 8;
    const int column = i / 4 * 16 + i / 2 % 2 * 8 + lane % 4 * 2;
    rows[i / 4][i % 4] =
        row < group ? *reinterpret_cast<const uint32_t*>(q + row * kDim + column) : 0u;
  }
}

// What a warp knows; [0] row quad, [1] row quad + 8.
template <int kDim>
struct Sums {
  float values[kDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float weight[2] = {};
};

template <int kDim>
__device__ void add_tile(const Shared<kDim>& shared, int buffer, const PartsProblem& p, int keys,
                         int warp, int lane, const uint32_t (&q)[kDim / 16][4], Sums<kDim>& sums) {
  float scores[2][4] = {};
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t k[4];
    const int key = warp * kWarpKeys + lane / 16 * 8 + lane % 8;
    cuda::load_matrices(k, &shared.keys[buffer][key][step * 16 + lane / 8 % 2 * 8]);
    cuda::mma_bf16(scores[0], q[step], k[0], k[1]);
    cuda::mma_bf16(scores[1], q[step], k[2], k[3]);
  }
  uint32_t weights[4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = sums.largest[half];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& s = scores[i / 2][half * 2 + i % 2];
      if (warp * kWarpKeys + i / 2 * 8 + lane % 4 * 2 + i % 2 >= keys) s = -INFINITY;
      s *= p.scale_log2;
      largest = fmaxf(largest, s);
    }
    largest = fmaxf(largest, __shfl_xor_sync(cuda::kFullWarp, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(cuda::kFullWarp, largest, 2));
    // Nothing seen yet: any finite number keeps the differences from being NaN.
    const float base = largest == -INFINITY ? 0.0f : largest;
    const float before = cuda::fast_exp2(sums.largest[half] - base);
    sums.largest[half] = largest;
    sums.weight[half] *= before;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float low = cuda::fast_exp2(scores[n][half * 2] - base);
      const float high = cuda::fast_exp2(scores[n][half * 2 + 1] - base);
      sums.weight[half] += low + high;
      weights[n * 2 + half] = cuda::pack_bf16(low, high);
    }
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) sums.values[i / 2][half * 2 + i % 2] *= before;
  }
#pragma unroll
  for (int n = 0; n < kDim / 16; ++n) {
    uint32_t v[4];
    const int key = warp * kWarpKeys + lane % 16;
    cuda::load_matrices_transposed(v, &shared.values[buffer][key][n * 16 + lane / 16 * 8]);
    cuda::mma_bf16(sums.values[2 * n], weights, v[0], v[1]);
    cuda::mma_bf16(sums.values[2 * n + 1], weights, v[2], v[3]);
  }
}

// The warps' sums, joined and written to the slots of the part.
template <int kDim>
__device__ void join_warps(Shared<kDim>& shared, const PartsProblem& p, Sums<kDim>& sums,
                           int64_t token, int first_head, int group, int part, int warp, int lane) {
  __syncthreads();  // tiles and sums share their memory
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + half * 8;
    float weight = sums.weight[half];
    weight += __shfl_xor_sync(cuda::kFullWarp, weight, 1);
    weight += __shfl_xor_sync(cuda::kFullWarp, weight, 2);
    shared.largest[warp][row] = sums.largest[half];
    shared.weight[warp][row] = weight;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) {
      shared.sums[warp][row][i / 2 * 8 + lane % 4 * 2 + i % 2] =
          sums.values[i / 2][half * 2 + i % 2];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < group * kDim; i += kThreads) {
    const int row = i / kDim;
    float* to = p.slot(token, first_head + row, part);
    float largest = shared.largest[0][row];
    for (int w = 1; w < kWarps; ++w) largest = fmaxf(largest, shared.largest[w][row]);
    float sum = 0;
    float weight = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float own = shared.largest[w][row];
      const float factor = own == -INFINITY ? 0.0f : exp2f(own - largest);
      sum += factor * shared.sums[w][row][i % kDim];
      weight += factor * shared.weight[w][row];
    }
    to[i % kDim] = sum;
    if (i % kDim == 0) {
      to[kDim] = largest;
      to[kDim + 1] = weight;
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    parts_kernel(const __grid_constant__ PartsProblem p, const __nv_bfloat16* q) {
  extern __shared__ __align__(16) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(storage);
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int64_t token = blockIdx.x / p.kv_heads;
  const int kv_head = static_cast<int>(blockIdx.x % p.kv_heads);
  const int group = p.heads / p.kv_heads;
  const int index = static_cast<int>(blockIdx.y);
  const VisibleKeys visible = p.visible(token);
  const PartsOfKeys parts(visible);
  if (index >= parts.count) return;
  const Part part{visible, parts.begin, parts.first(index), parts.first(index + 1)};
  uint32_t rows[kDim / 16][4];
  read_queries<kDim>(q + (token * p.heads + kv_head * group) * kDim, group, lane, rows);
  Sums<kDim> sums;
  fetch_tile(shared, 0, part, part.first, kv_head);
  int buffer = 0;
  for (int64_t first = part.first; first < part.last; first += kTileKeys, buffer = 1 - buffer) {
    cuda::wait_for_copies<0>();
    __syncthreads();  // the tile is there, and nobody reads the other buffer any more
    if (first + kTileKeys < part.last) {
      fetch_tile(shared, 1 - buffer, part, first + kTileKeys, kv_head);
    }
    const auto keys = static_cast<int>(min(part.last - first, int64_t{kTileKeys}));
    add_tile(shared, buffer, p, keys, warp, lane, rows, sums);
  }
  join_warps(shared, p, sums, token, kv_head * group, group, index, warp, lane);
}

template <int kDim>
void launch(Context& context, const SoftmaxAttentionArgs& args, const PartsProblem& p) {
  constexpr auto kBytes = static_cast<int>(sizeof(Shared<kDim>));
  cuda::allow_shared_memory(context, parts_kernel<kDim>, kBytes);
  const dim3 blocks(static_cast<unsigned>(p.tokens * p.kv_heads), static_cast<unsigned>(p.parts));
  cuda::launch_early(context, "softmax_attention: parts", blocks, kThreads, kBytes,
                     parts_kernel<kDim>, p, reinterpret_cast<const __nv_bfloat16*>(args.q.data()));
}

}  // namespace

bool parts_tiles_fit(const SoftmaxAttentionArgs& args) {
  const Shape& q = args.q.shape();
  const ConstTensorView cache = any_keys(args);
  return args.q.dtype() == DType::kBF16 && cache.dtype() == DType::kBF16 &&
         (q[2] == 64 || q[2] == 128) && q[1] / cache.shape()[0] <= kRows && args.q.contiguous() &&
         args.o.contiguous();
}

void softmax_attention_parts_tiles(Context& context, const SoftmaxAttentionArgs& args,
                                   const PartsProblem& problem) {
  problem.head_dim == 64 ? launch<64>(context, args, problem) : launch<128>(context, args, problem);
}

}  // namespace spb::ops
