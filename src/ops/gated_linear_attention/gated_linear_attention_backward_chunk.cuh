// Shared memory of the kernel that differentiates a chunk on tensor cores, and what it prepares
// there for all query heads of its kv head.
//
// With G the inclusive cumulative log decay inside the chunk, a_I = G at the first token of
// sub-chunk I and e_J = G at the last one of J:
//   anchored query   q_i exp(G_i - a_I)         for i in I
//   keys (I, J)      k_j exp(a_I - G_j)         for j in J <= I, one block for each pair
//   scores           A_ij = scale <anchored query, key of (I, J)>
// so that dq_i exp(a_I - G_i) and dk_j exp(G_j - a_I) are products of dA with exactly these
// factors, rounded alike on both sides: in sums of q . dq - k . dk a pair of tokens that are both
// in the sum drops out to the last bits of f32, and d_g keeps its precision.
// Only the blocks on the diagonal have factors above 1; steep chunks are left to the exact kernel.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_backward_batch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_chunk.cuh"

namespace spb::ops::gated {

inline constexpr int kGradientChunk = kSegmentUnit;
inline constexpr int kGradientThreads = 512;  // of the kernel that differentiates
inline constexpr int kGradientSubChunks = kGradientChunk / kSubChunk;
inline constexpr int kGradientBlocks = kGradientSubChunks * (kGradientSubChunks + 1) / 2;

// An octet of tokens that decays by more than 2^-kSteepOctet makes a chunk steep: else factors
// on the diagonal stay below 2^(2 kSteepOctet).
inline constexpr float kSteepOctet = 28.0f;

// Gates of up to `rows` tokens, 0 for the others; all loads are under way together.
template <typename Value>
__device__ void load_rows(const Tensors& tensors, int64_t at, int64_t stride, int rows,
                          Value (&gates)[kSubChunk]) {
  const auto load = [&](const auto* from) {
#pragma unroll
    for (int i = 0; i < kSubChunk; ++i) {
      gates[i] = {};
      if (i >= rows) continue;
      if constexpr (sizeof(Value) == sizeof(float2)) {
        gates[i] = load_pair(from + at + i * stride);
      } else {
        gates[i] = cuda::to_float(from[at + i * stride]);
      }
    }
  };
  if (tensors.bf16_gates) {
    load(static_cast<const bf16_t*>(tensors.g));
  } else {
    load(static_cast<const float*>(tensors.g));
  }
}

// The log decays of a pair of channels in a sub-chunk; none where there are no tokens.
template <int kDim, typename Task>
__device__ void load_sub_chunk(const Tensors& tensors, const Segment& segment, int head,
                               const Task& task, float2 (&gates)[kSubChunk]) {
  const int64_t stride = int64_t{kDim} * tensors.kv_heads;
  const int first = task.sub_chunk * kSubChunk;
  const int64_t at = (segment.first_token + first) * stride + head * kDim + 2 * task.pair;
  load_rows(tensors, at, stride, segment.tokens - first, gates);
#pragma unroll
  for (int i = 0; i < kSubChunk; ++i) gates[i] = log2_decays(gates[i]);
}

// Sums of the gates of sub-chunks, and their first ones.
template <int kDim>
struct SubChunkGates {
  float total[kGradientSubChunks][kDim];
  float first[kGradientSubChunks][kDim];

  template <typename Task>
  __device__ void publish(const Task& task, const float2 (&gates)[kSubChunk]) {
    float2 sum = {0, 0};
#pragma unroll
    for (int i = 0; i < kSubChunk; ++i) sum = sum + gates[i];
    if (task.share != 0) return;
    store_pair(&total[task.sub_chunk][2 * task.pair], sum);
    store_pair(&first[task.sub_chunk][2 * task.pair], gates[0]);
  }
  // Sum over whole sub-chunks [begin, end).
  __device__ float2 between(int begin, int end, int column) const {
    float2 sum = {0, 0};
    for (int n = begin; n < end; ++n) sum = sum + load_pair(&total[n][column]);
    return sum;
  }
};

template <int kDim>
struct GradientMemory {
  static constexpr int kRow = kPaddedRow<kDim>;
  static constexpr int kScoreRow = kGradientChunk + 8;
  using Rows = bf16_t[kGradientChunk][kRow];

  union {
    Rows queries[2];                     // of two heads: as they are, then anchored
    float to_end[kGradientChunk][kRow];  // at the end: decay to the end of the sub-chunk
  };
  union {
    bf16_t keys[kGradientBlocks][kSubChunk][kRow];
    float growth[kGradientChunk][kRow];  // at the end: inverse decay from the anchor
  };
  Rows d_o[2];  // of two heads; at the end keys, decayed to the end of the chunk
  Rows values;
  Rows raw_keys;
  bf16_t state[kDim][kRow];  // before the chunk; at the end the gradient after it
  Rows decays;               // from the anchor to the token
  bf16_t scores[kGradientChunk][kScoreRow];
  bf16_t d_scores[kGradientChunk][kScoreRow];
  SubChunkGates<kDim> gates;
  float anchor[kGradientSubChunks][kDim];  // decay from before the chunk to the anchor
  float jump[kGradientBlocks][kDim];       // of (I, J): from the end of J to the anchor of I
  float dots[kDim];                        // rowsum(S . dS), both after the chunk's decay

  static __device__ constexpr int block(int i, int j) { return i * (i + 1) / 2 + j; }
};

// Factors of 16x8x16 products from rows in shared memory, `kRow` elements apart. Left: 16 rows by
// 16 columns, or the transpose of such a block. Right: 16 by 16 for two products.
template <int kRow>
__device__ void load_left(uint32_t (&a)[4], const bf16_t (*rows)[kRow], int row, int column) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  cuda::load_matrices(a, &rows[row + lane % 16][column + lane / 16 * 8]);
}
template <int kRow>
__device__ void load_left_transposed(uint32_t (&a)[4], const bf16_t (*rows)[kRow], int row,
                                     int column) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  cuda::load_matrices_transposed(a,
                                 &rows[row + lane % 8 + lane / 16 * 8][column + lane / 8 % 2 * 8]);
}
template <int kRow>
__device__ void load_right(uint32_t (&b)[4], const bf16_t (*rows)[kRow], int row, int column) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  cuda::load_matrices_transposed(b, &rows[row + lane % 16][column + lane / 16 * 8]);
}
template <int kRow>
__device__ void load_right_transposed(uint32_t (&b)[4], const bf16_t (*rows)[kRow], int row,
                                      int column) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  cuda::load_matrices(b, &rows[row + lane % 8 + lane / 16 * 8][column + lane / 8 % 2 * 8]);
}

// Keys and decays of a pair of channels in a sub-chunk.
template <int kDim>
class GradientPreparation {
 public:
  using Memory = GradientMemory<kDim>;

  __device__ GradientPreparation(Memory& memory, const Tensors& tensors, const Segment& segment,
                                 int head)
      : memory_(memory) {
    load_sub_chunk<kDim>(tensors, segment, head, task_, gates_);
  }

  // First: a barrier must follow.
  __device__ void sum_gates() { memory_.gates.publish(task_, gates_); }

  // For the heads, once keys have arrived; a barrier must follow.
  __device__ void write_factors() {
    const int n = task_.sub_chunk;
    const auto to_anchor = [&](int later) {  // from the end of this sub-chunk
      return memory_.gates.between(n + 1, later, column_) +
             load_pair(&memory_.gates.first[later][column_]);
    };
    if (task_.share == 0) {
      const float2 before = memory_.gates.between(0, n, column_) + gates_[0];
      store_pair(&memory_.anchor[n][column_], exp2_of(before));
      for (int later = n + 1; later < kGradientSubChunks; ++later) {
        store_pair(&memory_.jump[Memory::block(later, n)][column_], exp2_of(to_anchor(later)));
      }
    }
    float2 sum = {0, 0};
#pragma unroll
    for (int i = 0; i < kSubChunk; ++i) {
      if (i > 0) sum = sum + gates_[i];
      if (!task_.has(i)) continue;
      store_pair(&memory_.decays[first_ + i][column_], exp2_of(sum));
      write_key(n, i, {-sum.x, -sum.y});
    }
    for (int later = n + 1; later < kGradientSubChunks; ++later) {
      sum = to_anchor(later);
#pragma unroll
      for (int i = kSubChunk - 1; i >= 0; --i) {
        if (task_.has(i)) write_key(later, i, sum);
        sum = sum + gates_[i];
      }
    }
  }

  // After the last head: what turns sums into d_k, and keys decayed to the end of the chunk.
  __device__ void write_ends() {
    float2 sum = {0, 0};
#pragma unroll
    for (int i = 0; i < kSubChunk; ++i) {
      if (i > 0) sum = sum + gates_[i];
      if (task_.has(i)) {
        store_pair(&memory_.growth[first_ + i][column_], exp2_of({-sum.x, -sum.y}));
      }
    }
    const float2 after = memory_.gates.between(task_.sub_chunk + 1, kGradientSubChunks, column_);
    sum = {0, 0};
#pragma unroll
    for (int i = kSubChunk - 1; i >= 0; --i) {
      if (task_.has(i)) {
        store_pair(&memory_.to_end[first_ + i][column_], exp2_of(sum));
        store_pair(&memory_.d_o[0][first_ + i][column_], key(i) * exp2_of(sum + after));
      }
      sum = sum + gates_[i];
    }
  }

 private:
  __device__ float2 key(int i) const { return load_pair(&memory_.raw_keys[first_ + i][column_]); }
  __device__ void write_key(int later, int i, float2 log_decay) {
    store_pair(&memory_.keys[Memory::block(later, task_.sub_chunk)][i][column_],
               key(i) * exp2_of(log_decay));
  }

  Memory& memory_;
  GateTask<kDim, kGradientChunk, kGradientThreads> task_;
  int column_ = 2 * task_.pair;
  int first_ = task_.sub_chunk * kSubChunk;
  float2 gates_[kSubChunk];
};

// A state of f32 as bf16 rows; with `other` also rowsum(state . other) times `decays`.
template <int kDim>
__device__ void load_state(const float* from, GradientMemory<kDim>& memory,
                           const float* other = nullptr, const float* decays = nullptr) {
  constexpr int kLanes = kDim / 4;  // of a row, 16 bytes each
  const auto column = static_cast<int>(threadIdx.x % kLanes) * 4;
#pragma unroll 4
  for (auto row = static_cast<int>(threadIdx.x / kLanes); row < kDim;
       row += kGradientThreads / kLanes) {
    const float4 x = *reinterpret_cast<const float4*>(from + row * kDim + column);
    store_pair(&memory.state[row][column], {x.x, x.y});
    store_pair(&memory.state[row][column + 2], {x.z, x.w});
    if (other == nullptr) continue;
    const float4 y = *reinterpret_cast<const float4*>(other + row * kDim + column);
    float sum = x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (column == 0) memory.dots[row] = sum * decays[row];
  }
}

// d_g_t = rowsum(S . dS) + sum over i >= t of (q . dq - k . dk), where what later chunks add to
// k . dk is counted before t instead: then no large numbers cancel.
template <int kDim>
__device__ void write_gates(const GradientTensors& tensors, const Segment& segment, int head,
                            GradientMemory<kDim>& memory) {
  const Tensors& forward = tensors.forward;
  const auto channel = static_cast<int>(threadIdx.x % kDim);
  const auto sub_chunk = static_cast<int>(threadIdx.x / kDim);
  const bool works = sub_chunk < kGradientSubChunks;
  const int first = sub_chunk * kSubChunk;
  const int64_t stride = int64_t{kDim} * forward.kv_heads;
  const int64_t at = (segment.first_token + first) * stride + head * kDim + channel;
  float gates[kSubChunk];
  float later[kSubChunk];
  float earlier[kSubChunk];
  if (works) {
    load_rows(forward, at, stride, segment.tokens - first, gates);
    float sum = 0;
#pragma unroll
    for (int i = kSubChunk - 1; i >= 0; --i) {
      sum += memory.to_end[first + i][channel];
      later[i] = sum;
    }
    memory.gates.total[sub_chunk][channel] = sum;
    sum = 0;
#pragma unroll
    for (int i = 0; i < kSubChunk; ++i) {
      earlier[i] = sum;
      sum += memory.growth[first + i][channel];
    }
    memory.gates.first[sub_chunk][channel] = sum;
  }
  __syncthreads();
  if (!works) return;
  float rest = memory.dots[channel];
  for (int n = 0; n < sub_chunk; ++n) rest += memory.gates.first[n][channel];
  for (int n = kGradientSubChunks - 1; n > sub_chunk; --n) rest += memory.gates.total[n][channel];
#pragma unroll
  for (int i = 0; i < kSubChunk; ++i) {
    if (first + i >= segment.tokens) continue;
    tensors.d_g[at + i * stride] = gates[i] < kMinLogDecay ? 0.0f : rest + later[i] + earlier[i];
  }
}

// On tensor cores: bf16, key_dim = value_dim = 64 or 128, everything aligned.
// Whether the current device has the shared memory for it.
bool chunks_fit(int dim);
// What every segment adds to the state and to the gradient, its decay, and whether it is steep,
// into the scratch.
void collect_chunks(const GradientTensors& tensors, const Batch& batch,
                    const GradientScratch& scratch, cudaStream_t stream);
// The gradients of the tokens of segments that are not steep.
void differentiate(const GradientTensors& tensors, const Batch& batch,
                   const GradientScratch& scratch, cudaStream_t stream);

}  // namespace spb::ops::gated
