// Scores of the 16 tokens of a sub-chunk with each other under gates of any strength, on tensor
// cores.
//
// A single anchor cannot serve a block on the diagonal: for keys after it, exp(G_anchor - G_j)
// grows without bound. So pairs (i, j), j < i, are sorted by the highest bit in which i and j
// differ. Those of bit b lie in aligned blocks of 2b tokens, i in the later half and j in the
// earlier one; with the first token of the later half as anchor both exponents are <= 0. One
// product for each of the four bits, and one for the diagonal, whose decay is 1. What a product
// holds for other pairs is finite or not, and never looked at.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_chunk.cuh"

namespace spb::ops::gated {

inline constexpr int kBits = 4;  // of the number of a token in its sub-chunk
inline constexpr int kOctet = 8;

// A thread has two channels of an octet of tokens. Of a block for one bit, the later half gets its
// decay from the anchor, which is its first token.
template <int kBit, typename Row>
__device__ void write_later_half(const float2 (&gates)[kOctet], Row* rows, int column,
                                 int anchor = 0) {
  float2 sum = {0, 0};
#pragma unroll
  for (int n = 0; n < kBit; ++n) {
    if (n > 0) sum = sum + gates[anchor + n];
    store_pair(&rows[anchor + n][column], exp2_of(sum));
  }
}

// The earlier half gets its keys, decayed to the anchor, whose own gate is `last`.
template <int kBit, typename Row>
__device__ void write_earlier_half(const float2 (&gates)[kOctet], const float2 (&keys)[kOctet],
                                   float2 last, Row* rows, int column, int anchor = kBit) {
  float2 sum = last;
#pragma unroll
  for (int n = 1; n <= kBit; ++n) {
    store_pair(&rows[anchor - n][column], keys[anchor - n] * exp2_of(sum));
    sum = sum + gates[anchor - n];
  }
}

// All blocks for one bit that lie in an octet.
template <int kBit, typename Row>
__device__ void write_halves(const float2 (&gates)[kOctet], const float2 (&keys)[kOctet], Row* rows,
                             int column) {
#pragma unroll
  for (int anchor = kBit; anchor < kOctet; anchor += 2 * kBit) {
    write_later_half<kBit>(gates, rows, column, anchor);
    write_earlier_half<kBit>(gates, keys, gates[anchor], rows, column, anchor);
  }
}

__device__ inline bool highest_bit_is(int i, int j, int bit) {
  if (bit == 0) return i == j;
  return i > j && (i ^ j) >= bit && (i ^ j) < 2 * bit;
}

// One product: raw queries, decayed by `rows` unless on the diagonal, times the keys in `rows`.
template <int kDim, typename Row>
__device__ void multiply_halves(const Queries<kDim>& queries, const Row* rows, bool diagonal,
                                float scale, float (&products)[2][4]) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[4];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const int row = lane / 4 + word % 2 * 8;
      const int column = 16 * step + word / 2 * 8 + lane % 4 * 2;
      const float2 decay = load_pair(&rows[row][column]);
      const float2 query = cuda::unpack_bf16(queries.word(step, word));
      a[word] = cuda::pack_bf16(query.x * scale * (diagonal ? 1.0f : decay.x),
                                query.y * scale * (diagonal ? 1.0f : decay.y));
    }
    uint32_t b[4];
    cuda::load_matrices(b, &rows[lane % 8 + lane / 16 * 8][16 * step + lane / 8 % 2 * 8]);
    cuda::mma_bf16(products[0], a, b[0], b[1]);
    cuda::mma_bf16(products[1], a, b[2], b[3]);
  }
}

// `halves` as written above for each bit, highest first; `keys` as they are.
template <int kDim, typename Row>
__device__ void exact_scores(const Queries<kDim>& queries, const Row (*halves)[kSubChunk],
                             const Row* keys, float scale, float (&scores)[2][4]) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll 1
  for (int b = 0; b <= kBits; ++b) {
    const int bit = kSubChunk / 2 >> b;
    float products[2][4] = {};
    multiply_halves<kDim>(queries, b < kBits ? halves[b] : keys, b == kBits, scale, products);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int i = lane / 4 + e % 4 / 2 * 8;
      const int j = e / 4 * 8 + lane % 4 * 2 + e % 2;
      if (highest_bit_is(i, j, bit)) scores[e / 4][e % 4] = products[e / 4][e % 4];
    }
  }
}

}  // namespace spb::ops::gated
