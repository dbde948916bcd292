// Shared memory of the kernel that reads states, and what a chunk prepares there for all query
// heads of its kv head.
//
// With G the inclusive cumulative log decay inside the chunk, a_I = G at the first token of
// sub-chunk I, and everything decayed by factors <= 1 except the diagonal blocks:
//   query_decay   scale exp(G_i - a_I)            turns q_i of I into its anchored form
//   first_decay   exp(a_I)                        turns that into the form that reads the state
//   anchored      k_j exp(a_I - G_j), j in J <= I  one block for each (I, J)
//   ending        k_j exp(G_end - G_j)            what the chunk adds to the state
// A diagonal block whose gates are steep has factors beyond range; it is computed exactly instead.
//
// Channels lie in lane order: what one lane needs for a product side by side in global memory, so
// that a lane moves 16 bytes of q and o at a time. The order permutes both sides of every product
// alike, so that no result depends on it.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_chunk.cuh"

namespace spb::ops::gated {

// Place of channel 32 m + 8 lane + 2 word + e: 32 m + 8 word + 2 lane + e. Its own inverse.
__device__ constexpr int lane_order(int channel) {
  return (channel & ~30) | (channel & 6) << 2 | (channel & 24) >> 2;
}

// Beyond this range of log2 decays within a sub-chunk, the diagonal block is computed exactly:
// factors up to 2^kSteep leave room for keys in bf16 and sums in f32.
inline constexpr float kSteep = 56.0f;

template <int kDim, int kChunk, typename Gate>
struct ReadMemory {
  static constexpr int kSubChunks = kChunk / kSubChunk;
  static constexpr int kBlocks = kSubChunks * (kSubChunks + 1) / 2;
  static constexpr int kRow = kPaddedRow<kDim>;
  // Rows of f32 pairs, 32 bytes apart modulo 128: half a warp reads four rows without conflict.
  static constexpr int kFloatRow = kDim + 8;

  Gate gates[kChunk][kDim];
  bf16_t keys[kChunk][kDim];
  bf16_t values[2][kChunk][kRow];  // of this chunk and the next one
  bf16_t state[kDim][kRow];
  bf16_t anchored[kBlocks][kSubChunk][kRow];
  bf16_t ending[kChunk][kRow];
  float query_decay[kChunk][kFloatRow];
  float first_decay[kSubChunks][kDim];
  float total[kSubChunks][kDim];  // log2 decay of sub-chunks
  float first[kSubChunks][kDim];  // of their first tokens
  float decay[kDim];              // of the chunk
  int steep[kWarps];

  static __device__ constexpr int block(int i, int j) { return i * (i + 1) / 2 + j; }

  // Whether any channel is steep in sub-chunk i: each warp has looked at 32 pairs of channels.
  __device__ bool is_steep(int i) const {
    constexpr int kWarpsEach = kDim / 64;
    int any = 0;
#pragma unroll
    for (int w = 0; w < kWarpsEach; ++w) any |= steep[i * kWarpsEach + w];
    return any != 0;
  }
};

template <int kDim, int kChunk, typename Gate>
class ChunkPreparation {
 public:
  using Memory = ReadMemory<kDim, kChunk, Gate>;

  // First half: sums of gates. A barrier must follow.
  __device__ explicit ChunkPreparation(Memory& memory) : memory_(memory) {
    float2 range = {0, 0};
#pragma unroll
    for (int i = 0; i < kSubChunk; ++i) {
      gates_[i] = load_gates(&memory.gates[first_ + i][2 * task_.pair]);
      if (i > 0) range = range + gates_[i];
    }
    const bool steep = __any_sync(0xffffffffu, range.x < -kSteep || range.y < -kSteep);
    if (task_.share > 0) return;
    store_pair(&memory.total[task_.sub_chunk][column_], range + gates_[0]);
    store_pair(&memory.first[task_.sub_chunk][column_], gates_[0]);
    if (threadIdx.x % 32 == 0) memory.steep[threadIdx.x / 32] = steep;
  }

  // Second half: everything that follows from the sums. A barrier must follow.
  __device__ void finish(float scale) {
    sum_sub_chunks();
    float2 sum = {0, 0};
#pragma unroll
    for (int i = 0; i < kSubChunk; ++i) {
      if (i > 0) sum = sum + gates_[i];
      if (!task_.has(i)) continue;
      const float2 decay = exp2_of(sum);
      store_pair(&memory_.query_decay[first_ + i][column_], decay * float2{scale, scale});
      store_pair(&memory_.anchored[Memory::block(task_.sub_chunk, task_.sub_chunk)][i][column_],
                 key(i) * exp2_of({-sum.x, -sum.y}));
    }
    sum = {0, 0};
#pragma unroll
    for (int i = kSubChunk - 1; i >= 0; --i) {
      if (task_.has(i)) write_later_keys(i, key(i) * exp2_of(sum));
      sum = sum + gates_[i];
    }
  }

 private:
  // Decays between this sub-chunk and the anchors of later ones, and of earlier ones before it.
  __device__ void sum_sub_chunks() {
    float2 before = {0, 0};
    float2 after = {0, 0};
#pragma unroll
    for (int j = 0; j < Memory::kSubChunks; ++j) {
      const float2 total = load_pair(&memory_.total[j][column_]);
      const float2 first = load_pair(&memory_.first[j][column_]);
      if (j < task_.sub_chunk) before = before + total;
      if (j <= task_.sub_chunk) continue;
      to_anchor_[j] = exp2_of(after + first);
      after = after + total;
    }
    to_end_ = exp2_of(after);
    if (task_.share > 0) return;
    store_pair(&memory_.first_decay[task_.sub_chunk][column_], exp2_of(before + gates_[0]));
    if (task_.sub_chunk == 0) {
      const float2 total = load_pair(&memory_.total[0][column_]);
      store_pair(&memory_.decay[column_], exp2_of(total + after));
    }
  }

  __device__ float2 key(int i) const {
    return load_pair(&memory_.keys[first_ + i][2 * task_.pair]);
  }

  // `key` has been decayed to the end of its sub-chunk.
  __device__ void write_later_keys(int i, float2 key) {
    store_pair(&memory_.ending[first_ + i][column_], key * to_end_);
#pragma unroll
    for (int j = 1; j < Memory::kSubChunks; ++j) {
      if (j <= task_.sub_chunk) continue;
      store_pair(&memory_.anchored[Memory::block(j, task_.sub_chunk)][i][column_],
                 key * to_anchor_[j]);
    }
  }

  Memory& memory_;
  GateTask<kDim, kChunk> task_;
  int first_ = task_.sub_chunk * kSubChunk;
  int column_ = lane_order(2 * task_.pair);
  float2 gates_[kSubChunk];
  float2 to_anchor_[Memory::kSubChunks];
  float2 to_end_;
};

}  // namespace spb::ops::gated
