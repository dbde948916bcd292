// Scores of 16 tokens with each other under gates of any strength, on tensor cores.
//
// A single anchor cannot serve a block on the diagonal: for keys after it, exp(G_anchor - G_j)
// grows without bound. So pairs (i, j), j < i, are sorted by the highest bit in which i and j
// differ. Those of bit b lie in aligned blocks of 2b tokens, i in the later half and j in the
// earlier one; with the first token of the later half as anchor both exponents are <= 0. One
// product for each of the four bits, and one for the diagonal, whose decay is 1.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_chunk.cuh"

namespace spb::ops::gated {

struct Scores {
  float at[2][4];  // the results of two products side by side
};

// Pointers to the first of the `tokens` <= 16 tokens; strides in elements.
template <typename Gate>
struct DiagonalBlock {
  const bf16_t* q;
  const bf16_t* k;
  const Gate* g;
  int64_t q_stride;
  int64_t k_stride;
  int tokens;
  float scale;

  // exp of the log decays of tokens (from, to], two channels
  __device__ float2 decay(int from, int to, int column) const {
    float2 sum = {0, 0};
    for (int i = from + 1; i <= to && i < tokens; ++i) {
      sum = sum + load_gates(g + i * k_stride + column);
    }
    return exp2_of(sum);
  }
};

// The factors of one token in a product: A for q, B for k; two channels each.
struct Factors {
  uint32_t q = 0;
  uint32_t k = 0;
};

// `bit` 0 is the diagonal.
template <typename Gate>
__device__ Factors factors_of(const DiagonalBlock<Gate>& block, int token, int bit, int column) {
  Factors factors;
  if (token >= block.tokens) return factors;
  const bool later = (token & bit) != 0;
  const int anchor = later ? token & ~(bit - 1) : (token & ~(2 * bit - 1)) + bit;
  const float2 decay = bit == 0 ? float2{1, 1}
                       : later  ? block.decay(anchor, token, column)
                                : block.decay(token, anchor, column);
  if (bit == 0 || later) {
    const float2 q = load_pair(block.q + token * block.q_stride + column) * decay;
    factors.q = cuda::pack_bf16(q.x * block.scale, q.y * block.scale);
  }
  if (bit == 0 || !later) {
    const float2 k = load_pair(block.k + token * block.k_stride + column) * decay;
    factors.k = cuda::pack_bf16(k.x, k.y);
  }
  return factors;
}

__device__ inline bool pair_has_bit(int i, int j, int bit) {
  if (bit == 0) return i == j;
  return i > j && (i ^ j) >= bit && (i ^ j) < 2 * bit;
}


template <int kDim, typename Gate>
__device__ Scores exact_scores(const DiagonalBlock<Gate>& block) {
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  Scores scores = {};
#pragma unroll 1
  for (int step = 0; step < 5; ++step) {
    const int bit = kSubChunk / 2 >> step;
    float products[2][4] = {};
#pragma unroll 1
    for (int channel = 0; channel < kDim; channel += 16) {
      const int column = channel + lane % 4 * 2;
      const Factors upper = factors_of(block, lane / 4, bit, column);
      const Factors lower = factors_of(block, lane / 4 + 8, bit, column);
      const Factors upper_right = factors_of(block, lane / 4, bit, column + 8);
      const Factors lower_right = factors_of(block, lane / 4 + 8, bit, column + 8);
      const uint32_t a[4] = {upper.q, lower.q, upper_right.q, lower_right.q};
      cuda::mma_bf16(products[0], a, upper.k, upper_right.k);
      cuda::mma_bf16(products[1], a, lower.k, lower_right.k);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = lane / 4 + e / 2 * 8;
        const int j = 8 * half + lane % 4 * 2 + e % 2;
        if (pair_has_bit(i, j, bit)) scores.at[half][e] = products[half][e];
      }
    }
  }
  return scores;
}

}  // namespace spb::ops::gated
