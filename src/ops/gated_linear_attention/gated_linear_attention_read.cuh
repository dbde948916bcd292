// Shared memory of the kernel that reads states, and what a chunk prepares there for all query
// heads of its kv head.
//
// With G the inclusive cumulative log decay inside the chunk, a_I = G at the first token of
// sub-chunk I, and everything decayed by factors <= 1 except the diagonal blocks:
//   query_decay   scale exp(G_i - a_I)            turns q_i of I into its anchored form
//   first_decay   exp(a_I)                        turns that into the form that reads the state
//   anchored      k_j exp(a_I - G_j), j in J <= I  one block for each (I, J)
//   ending        k_j exp(G_end - G_j)            what the chunk adds to the state
// A diagonal block whose gates are steep would have factors beyond range. It holds bare keys, and
// its scores are computed from anchors at every power of two (gated_linear_attention_exact.cuh).
//
// Channels lie in lane order: what one lane needs for a product side by side in global memory, so
// that a lane moves 16 bytes of q and o at a time. The order permutes both sides of every product
// alike, so that no result depends on it.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_chunk.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_exact.cuh"

namespace spb::ops::gated {

// Place of channel 32 m + 8 lane + 2 word + e: 32 m + 8 word + 2 lane + e. Its own inverse.
__device__ constexpr int lane_order(int channel) {
  return (channel & ~30) | (channel & 6) << 2 | (channel & 24) >> 2;
}

// Short chunks: fewer scores, and shared memory that every card from sm_80 on has. (64: slower.)
inline constexpr int kReadChunk = 32;
inline constexpr int kSubChunks = kReadChunk / kSubChunk;
static_assert(kSubChunks == 2);

// Gates are summed by octets of tokens: as many tasks as threads have room for.
inline constexpr int kOctets = kReadChunk / kOctet;

// A sub-chunk is steep if an octet of it decays by more than 2^-kSteep: else factors on the
// diagonal stay below 2^(2 kSteep), with room for keys in bf16 and sums in f32.
inline constexpr float kSteep = 28.0f;

template <int kDim, typename Gate>
struct ReadMemory {
  static constexpr int kRow = kPaddedRow<kDim>;
  // Rows of f32 pairs, 32 bytes apart modulo 128: half a warp reads four rows without conflict.
  static constexpr int kFloatRow = kDim + 8;

  Gate gates[kReadChunk][kDim];
  bf16_t keys[kReadChunk][kDim];
  bf16_t values[2][kReadChunk][kRow];  // of this chunk and the next one
  bf16_t state[kDim][kRow];
  bf16_t anchored[3][kSubChunk][kRow];  // (0, 0), (1, 0), (1, 1)
  bf16_t ending[kReadChunk][kRow];
  bf16_t halves[kSubChunks][kBits][kSubChunk][kRow];  // of steep sub-chunks only
  float query_decay[kReadChunk][kFloatRow];
  float first_decay[kSubChunks][kDim];
  float first[kOctets][kDim];  // log2 decay of the first token of an octet, of the others
  float rest[kOctets][kDim];
  float decay[kDim];  // of the chunk
  int steep[kWarps];

  static __device__ constexpr int block(int i, int j) { return i * (i + 1) / 2 + j; }

  // Whether any channel is steep in sub-chunk i: each warp has looked at 32 pairs of channels in
  // one octet.
  __device__ bool is_steep(int i) const {
    constexpr int kWarpsEach = kDim / 64 * 2;
    int any = 0;
#pragma unroll
    for (int w = 0; w < kWarpsEach; ++w) any |= steep[i * kWarpsEach + w];
    return any != 0;
  }
};

// A thread prepares a pair of channels of one octet. Log decays are summed over the tokens in
// between, not subtracted from each other: a strong gate would swallow weak ones.
template <int kDim, typename Gate>
class ChunkPreparation {
 public:
  using Memory = ReadMemory<kDim, Gate>;

  // First half: sums of gates. A barrier must follow.
  __device__ explicit ChunkPreparation(Memory& memory) : memory_(memory) {
    if (octet_ >= kOctets) return;
    float2 rest = {0, 0};
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      gates_[i] = load_gates(&memory.gates[octet_ * kOctet + i][2 * pair_]);
      if (i > 0) rest = rest + gates_[i];
    }
    store_pair(&memory.first[octet_][column_], gates_[0]);
    store_pair(&memory.rest[octet_][column_], rest);
    const float2 total = gates_[0] + rest;
    const bool steep = __any_sync(0xffffffffu, total.x < -kSteep || total.y < -kSteep);
    if (threadIdx.x % 32 == 0) memory.steep[threadIdx.x / 32] = steep;
  }

  // Second half: everything that follows from the sums. A barrier must follow.
  __device__ void finish(float scale, bool rectify) {
    if (octet_ >= kOctets) return;
    const bool steep = memory_.is_steep(sub_chunk_);
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      keys_[i] = load_mapped(&memory_.keys[octet_ * kOctet + i][2 * pair_], rectify);
    }
    write_first_decays();
    write_from_anchor(scale, steep);
    write_to_later();
    if (steep) write_steep();
  }

 private:
  __device__ float2 first(int octet) const { return load_pair(&memory_.first[octet][column_]); }
  __device__ float2 rest(int octet) const { return load_pair(&memory_.rest[octet][column_]); }
  __device__ float2 total(int octet) const { return first(octet) + rest(octet); }

  __device__ void write_first_decays() {
    if (late_) return;
    const float2 before = sub_chunk_ == 0 ? float2{0, 0} : total(0) + total(1);
    store_pair(&memory_.first_decay[sub_chunk_][column_], exp2_of(before + gates_[0]));
    if (sub_chunk_ == 0) return;
    store_pair(&memory_.decay[column_], exp2_of(before + (total(2) + total(3))));
  }

  // Decays from the first token of the sub-chunk to each of its tokens; a late octet goes on where
  // the one before has ended.
  __device__ void write_from_anchor(float scale, bool steep) {
    float2 sum = late_ ? rest(octet_ - 1) + gates_[0] : float2{0, 0};
    auto* diagonal = memory_.anchored[Memory::block(sub_chunk_, sub_chunk_)];
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      if (i > 0) sum = sum + gates_[i];
      store_pair(&memory_.query_decay[octet_ * kOctet + i][column_],
                 exp2_of(sum) * float2{scale, scale});
      const float2 growth = steep ? float2{1, 1} : exp2_of({-sum.x, -sum.y});
      store_pair(&diagonal[row_ + i][column_], keys_[i] * growth);
    }
  }

  // Decays from each token to the end of the chunk, and to the anchor of the second sub-chunk.
  __device__ void write_to_later() {
    const float2 to_end = sub_chunk_ == 0 ? exp2_of(total(2) + total(3)) : float2{1, 1};
    const float2 to_anchor = exp2_of(first(2));
    float2 sum = late_ ? float2{0, 0} : total(octet_ + 1);
#pragma unroll
    for (int i = kOctet - 1; i >= 0; --i) {
      const float2 key = keys_[i] * exp2_of(sum);
      store_pair(&memory_.ending[octet_ * kOctet + i][column_], key * to_end);
      if (sub_chunk_ == 0) {
        store_pair(&memory_.anchored[Memory::block(1, 0)][row_ + i][column_], key * to_anchor);
      }
      sum = sum + gates_[i];
    }
  }

  __device__ void write_steep() {
    auto* halves = memory_.halves[sub_chunk_];
    if (late_) {
      write_later_half<kOctet>(gates_, halves[0] + row_, column_);
    } else {
      write_earlier_half<kOctet>(gates_, keys_, first(octet_ + 1), halves[0] + row_, column_);
    }
    write_halves<4>(gates_, keys_, halves[1] + row_, column_);
    write_halves<2>(gates_, keys_, halves[2] + row_, column_);
    write_halves<1>(gates_, keys_, halves[3] + row_, column_);
  }

  Memory& memory_;
  int pair_ = static_cast<int>(threadIdx.x % (kDim / 2));
  int octet_ = static_cast<int>(threadIdx.x / (kDim / 2));
  int sub_chunk_ = octet_ / 2;
  bool late_ = octet_ % 2 != 0;
  int row_ = octet_ % 2 * kOctet;  // of its first token in the sub-chunk
  int column_ = lane_order(2 * pair_);
  float2 gates_[kOctet];
  float2 keys_[kOctet];
};

}  // namespace spb::ops::gated
