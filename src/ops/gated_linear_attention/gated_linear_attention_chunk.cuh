// Parts that both chunked CUDA kernels of gated_linear_attention share.
#pragma once

#include "core/cuda/fast_math.cuh"
#include "core/cuda/mma.cuh"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_batch.cuh"

namespace spb::ops::gated {

using bf16_t = __nv_bfloat16;

// Rows in shared memory start 16 bytes apart modulo 128: loads of matrices meet no bank conflict.
template <int kDim>
inline constexpr int kPaddedRow = kDim + 8;

struct Segment {
  int64_t first_token;
  int tokens;
};

__device__ inline Segment segment_of(const Batch& batch, int index) {
  int i = 0;
  while (i + 1 < batch.sequences && batch.sequence[i + 1].first_segment <= index) ++i;
  const Sequence& sequence = batch.sequence[i];
  const int64_t skipped =
      static_cast<int64_t>(index - sequence.first_segment) * sequence.segment_tokens;
  const int64_t left = sequence.tokens - skipped;
  return {sequence.first_token + skipped,
          static_cast<int>(left < sequence.segment_tokens ? left : sequence.segment_tokens)};
}

// Rows of kDim elements in pieces of kElements, the first `valid` of which exist; the others become
// zeros. to(row, column): where a piece goes.
template <int kRows, int kDim, int kElements, typename T, typename To>
__device__ void copy_pieces(const T* from, int64_t stride, int valid, To to) {
  constexpr unsigned kPieces = kDim / kElements;
  constexpr unsigned kRowsAtOnce = kThreads / kPieces;
  static_assert(kThreads % kPieces == 0 && kRows % kRowsAtOnce == 0);
  const unsigned column = threadIdx.x % kPieces * kElements;
  unsigned row = threadIdx.x / kPieces;
  from += row * stride + column;
#pragma unroll
  for (unsigned pass = 0; pass < kRows / kRowsAtOnce; ++pass) {
    const bool exists = static_cast<int>(row) < valid;
    cuda::copy_async<kElements* static_cast<int>(sizeof(T))>(to(row, column), from, exists);
    row += kRowsAtOnce;
    from += kRowsAtOnce * stride;
  }
}

template <int kRows, int kDim, typename T>
__device__ void copy_rows(T* to, int to_stride, const T* from, int64_t stride, int valid) {
  copy_pieces<kRows, kDim, 16 / sizeof(T)>(from, stride, valid, [&](unsigned row, unsigned column) {
    return to + row * to_stride + column;
  });
}

// Work on gates: a thread has a pair of channels in the 16 tokens of one sub-chunk. Where that
// leaves threads, several share such a task, and each takes a range of its tokens.
template <int kDim, int kChunk, int kTaskThreads = kThreads>
struct GateTask {
  static constexpr int kPairs = kDim / 2;
  static constexpr int kTasks = kChunk / kSubChunk * kPairs;
  static constexpr int kShares = kTaskThreads / kTasks;
  static_assert(kTasks * kShares == kTaskThreads && kSubChunk % kShares == 0);

  int pair = static_cast<int>(threadIdx.x % kPairs);
  int sub_chunk = static_cast<int>(threadIdx.x % kTasks / kPairs);
  int share = static_cast<int>(threadIdx.x / kTasks);

  __device__ bool has(int token) const { return token / (kSubChunk / kShares) == share; }
};

__device__ inline float2 operator+(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
__device__ inline float2 operator*(float2 a, float2 b) { return {a.x * b.x, a.y * b.y}; }
__device__ inline float2 exp2_of(float2 x) { return {cuda::fast_exp2(x.x), cuda::fast_exp2(x.y)}; }

__device__ inline float2 load_pair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ inline void store_pair(float* to, float2 x) { *reinterpret_cast<float2*>(to) = x; }
__device__ inline float2 load_pair(const bf16_t* from) {
  return cuda::unpack_bf16(*reinterpret_cast<const uint32_t*>(from));
}
__device__ inline void store_pair(bf16_t* to, float2 x) {
  *reinterpret_cast<uint32_t*>(to) = cuda::pack_bf16(x.x, x.y);
}

// Pairs of queries or keys as they count: max(x, 0) with `rectify`. NaN stays NaN.
__device__ inline uint32_t mapped(uint32_t pair, bool rectify) {
  constexpr uint32_t kMinusInfinities = 0xff80ff80;
  asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(pair) : "r"(rectify ? 0 : kMinusInfinities));
  return pair;
}
__device__ inline float2 load_mapped(const bf16_t* from, bool rectify) {
  return cuda::unpack_bf16(mapped(*reinterpret_cast<const uint32_t*>(from), rectify));
}

// Log decays to base 2, floored; NaN stays NaN.
__device__ inline float2 log2_decays(float2 g) {
  constexpr float kLog2E = 1.44269504f;
  return {kLog2E * (g.x < kMinLogDecay ? kMinLogDecay : g.x),
          kLog2E * (g.y < kMinLogDecay ? kMinLogDecay : g.y)};
}
template <typename Gate>
__device__ float2 load_gates(const Gate* from) {
  return log2_decays(load_pair(from));
}

// The f32 state, in the registers of all warps: each has 16 rows, and all columns or a part.
template <int kDim>
struct StateTile {
  static constexpr int kRowWarps = kDim / 16;
  static constexpr int kColumns = kDim / (kWarps / kRowWarps);
  static constexpr int kTiles = kColumns / 8;

  float at[kTiles][4] = {};
  int lane = static_cast<int>(threadIdx.x % 32);
  int row = static_cast<int>(threadIdx.x / 32 % kRowWarps * 16);
  int column = static_cast<int>(threadIdx.x / 32 / kRowWarps * kColumns);

  // S <- decay . S + keys^T values
  template <int kTokens>
  __device__ void add(const float* decay, const bf16_t (*keys)[kPaddedRow<kDim>],
                      const bf16_t (*values)[kPaddedRow<kDim>]) {
    const float upper = decay[row + lane / 4];
    const float lower = decay[row + lane / 4 + 8];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      at[n][0] *= upper;
      at[n][1] *= upper;
      at[n][2] *= lower;
      at[n][3] *= lower;
    }
#pragma unroll
    for (int token = 0; token < kTokens; token += 16) {
      uint32_t a[4];
      cuda::load_matrices_transposed(
          a, &keys[token + lane % 8 + lane / 16 * 8][row + lane / 8 % 2 * 8]);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t b[4];
        cuda::load_matrices_transposed(b,
                                       &values[token + lane % 16][column + 8 * n + lane / 16 * 8]);
        cuda::mma_bf16(at[n], a, b[0], b[1]);
        cuda::mma_bf16(at[n + 1], a, b[2], b[3]);
      }
    }
  }
};

// 16 tokens of one query head in the registers of a warp: the left factors of kDim / 16 products.
// Channels lie in lane order (see gated_linear_attention_read.cuh).
template <int kDim>
struct Queries {
  uint32_t at[kDim / 32][2][4];  // [32 channels][token lane / 4 (+ 8)][pair of channels]

  // Word `word` of the left factor of product `step`.
  __device__ uint32_t& word(int step, int word) {
    return at[step / 2][word % 2][step % 2 * 2 + word / 2];
  }
  __device__ const uint32_t& word(int step, int word) const {
    return at[step / 2][word % 2][step % 2 * 2 + word / 2];
  }

  __device__ void map(bool rectify) {
#pragma unroll
    for (int m = 0; m < kDim / 32; ++m) {
#pragma unroll
      for (int i = 0; i < 8; ++i) at[m][i / 4][i % 4] = mapped(at[m][i / 4][i % 4], rectify);
    }
  }
};

// Calls function(Gate()) for the type of the gates.
template <typename Function>
void with_gate(const Tensors& tensors, Function function) {
  if (tensors.bf16_gates) {
    function(bf16_t());
  } else {
    function(float());
  }
}

}  // namespace spb::ops::gated
