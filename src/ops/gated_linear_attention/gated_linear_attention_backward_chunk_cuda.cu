// The gradients of the tokens of a chunk on tensor cores, from the state before it and the gradient
// of the state after it. One block for each chunk and kv head takes the query heads one by one.
#include "core/cuda/launch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_backward_chunk.cuh"

namespace spb::ops::gated {
namespace {

constexpr int kChunk = kGradientChunk;
constexpr int kChunkWarps = kGradientThreads / 32;
constexpr int kParts = kChunkWarps / kGradientSubChunks;  // of the channels

// A warp has the 16 tokens of a sub-chunk and some of the channels, as products leave them.
template <int kDim>
class ChunkGradients {
 public:
  using Memory = GradientMemory<kDim>;
  static constexpr int kRow = Memory::kRow;
  static constexpr int kTiles = kDim / kParts / 8;
  using Tile = float[kTiles][4];

  __device__ ChunkGradients(Memory& memory, const GradientTensors& tensors, const Segment& segment,
                            int head)
      : memory_(memory), tensors_(tensors), segment_(segment), head_(head) {}

  __device__ void copy_head(int h) const {
    const Tensors& forward = tensors_.forward;
    if (h < forward.group && threadIdx.x < kThreads) {
      const int64_t from = query_offset(0, h);
      const int64_t stride = query_stride();
      copy_rows<kChunk, kDim>(memory_.queries[h % 2][0], kRow,
                              static_cast<const bf16_t*>(forward.q) + from, stride,
                              segment_.tokens);
      copy_rows<kChunk, kDim>(memory_.d_o[h % 2][0], kRow,
                              static_cast<const bf16_t*>(tensors_.d_o) + from, stride,
                              segment_.tokens);
    }
    cuda::commit_copies();
  }

  __device__ void copy_keys_and_values() const {
    if (threadIdx.x < kThreads) {
      const int64_t stride = int64_t{kDim} * tensors_.forward.kv_heads;
      copy_rows<kChunk, kDim>(memory_.raw_keys[0], kRow,
                              static_cast<const bf16_t*>(tensors_.forward.k) + key_offset(0),
                              stride, segment_.tokens);
      copy_rows<kChunk, kDim>(memory_.values[0], kRow,
                              static_cast<const bf16_t*>(tensors_.forward.v) + key_offset(0),
                              stride, segment_.tokens);
    }
    cuda::commit_copies();
  }

  __device__ void anchor_queries(int h) const {
    constexpr int kPairs = kDim / 2;
    const auto column = static_cast<int>(threadIdx.x % kPairs) * 2;
    bf16_t(*queries)[kRow] = memory_.queries[h % 2];
#pragma unroll 4
    for (auto row = static_cast<int>(threadIdx.x / kPairs); row < kChunk;
         row += kGradientThreads / kPairs) {
      const float2 query = load_pair(&queries[row][column]);
      store_pair(&queries[row][column], query * load_pair(&memory_.decays[row][column]));
    }
  }

  // Scores of the forward pass and their gradients, block by block.
  __device__ void score(int h) const {
    const bool gradient = warp_ % 2 != 0;
    for (int b = warp_ / 2; b < kGradientBlocks; b += kChunkWarps / 2) {
      const int i = b >= 6 ? 3 : b >= 3 ? 2 : b >= 1 ? 1 : 0;
      const int j = b - Memory::block(i, 0);
      if (gradient) {
        write_block(memory_.d_o[h % 2], &memory_.values[j * kSubChunk], i, j, memory_.d_scores);
      } else {
        write_block(memory_.queries[h % 2], memory_.keys[b], i, j, memory_.scores);
      }
    }
  }

  // d_q, and q . dq.
  __device__ void differentiate_queries(int h) {
    Tile d_q = {};
    const bf16_t(*d_o)[kRow] = memory_.d_o[h % 2];
#pragma unroll
    for (int step = 0; step < kDim; step += 16) {
      uint32_t a[4];
      load_left(a, d_o, token_, step);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t b[4];
        load_right_transposed(b, memory_.state, column_ + 8 * n, step);
        cuda::mma_bf16(d_q[n], a, b[0], b[1]);
        cuda::mma_bf16(d_q[n + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 anchor = load_pair(&memory_.anchor[sub_chunk_][channel(n)]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        d_q[n][e] *= tensors_.forward.scale * (e % 2 == 0 ? anchor.x : anchor.y);
      }
    }
    for (int j = 0; j <= sub_chunk_; ++j) {
      uint32_t a[4];
      load_left(a, memory_.d_scores, token_, j * kSubChunk);
      add_product(a, memory_.keys[Memory::block(sub_chunk_, j)], 0, d_q);
    }
    add_dots(memory_.queries[h % 2] + token_, d_q, 1);
    write_queries(h, d_q);
  }

  // What a head adds to d_v, and to d_k before its decays.
  __device__ void differentiate_keys(int h) {
    for (int i = sub_chunk_; i < kGradientSubChunks; ++i) {
      uint32_t a[4];
      load_left_transposed(a, memory_.scores, i * kSubChunk, token_);
      add_product(a, memory_.d_o[h % 2], i * kSubChunk, d_v_);
      load_left_transposed(a, memory_.d_scores, i * kSubChunk, token_);
      if (i == sub_chunk_) {
        add_product(a, memory_.queries[h % 2], i * kSubChunk, near_);
        continue;
      }
      Tile far = {};
      add_product(a, memory_.queries[h % 2], i * kSubChunk, far);
      const int block = Memory::block(i, sub_chunk_);
      add_dots(memory_.keys[block], far, -1);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float2 jump = load_pair(&memory_.jump[block][channel(n)]);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          far_[n][e] = fmaf(e % 2 == 0 ? jump.x : jump.y, far[n][e], far_[n][e]);
        }
      }
    }
  }

  // The part of k . dk that stays in the sub-chunk; before keys are overwritten.
  __device__ void finish_dots() {
    add_dots(memory_.keys[Memory::block(sub_chunk_, sub_chunk_)], near_, -1);
  }

  // d_v and d_k with what the later chunks add; leaves what d_g needs in `to_end` and `growth`.
  __device__ void finish() {
    Tile d_k = {};
#pragma unroll
    for (int step = 0; step < kDim; step += 16) {
      uint32_t a[4];
      load_left(a, memory_.d_o[0], token_, step);
      add_product(a, memory_.state, step, d_v_);
      load_left(a, memory_.values, token_, step);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t b[4];
        load_right_transposed(b, memory_.state, column_ + 8 * n, step);
        cuda::mma_bf16(d_k[n], a, b[0], b[1]);
        cuda::mma_bf16(d_k[n + 1], a, b[2], b[3]);
      }
    }
    write_values();
    write_keys(d_k);
  }

 private:
  __device__ int channel(int n) const { return column_ + 8 * n + lane_ % 4 * 2; }
  __device__ int row(int half) const { return token_ + lane_ / 4 + 8 * half; }
  __device__ int64_t query_stride() const {
    return int64_t{kDim} * tensors_.forward.kv_heads * tensors_.forward.group;
  }
  __device__ int64_t query_offset(int token, int h) const {
    return (segment_.first_token + token) * query_stride() +
           (int64_t{head_} * tensors_.forward.group + h) * kDim;
  }
  __device__ int64_t key_offset(int token) const {
    return ((segment_.first_token + token) * tensors_.forward.kv_heads + head_) * kDim;
  }

  // One block of scale left right^T, causal; a select, for above the diagonal it may be infinite.
  __device__ void write_block(const bf16_t (*left)[kRow], const bf16_t (*right)[kRow], int i, int j,
                              bf16_t (*to)[Memory::kScoreRow]) const {
    float products[2][4] = {};
#pragma unroll
    for (int step = 0; step < kDim; step += 16) {
      uint32_t a[4];
      uint32_t b[4];
      load_left(a, left, i * kSubChunk, step);
      load_right_transposed(b, right, 0, step);
      cuda::mma_bf16(products[0], a, b[0], b[1]);
      cuda::mma_bf16(products[1], a, b[2], b[3]);
    }
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const int r = lane_ / 4 + e % 4 / 2 * 8;
      const int c = e / 4 * 8 + lane_ % 4 * 2;
      const float scale = tensors_.forward.scale;
      const float2 pair = {i == j && c > r ? 0 : scale * products[e / 4][e % 4],
                           i == j && c + 1 > r ? 0 : scale * products[e / 4][e % 4 + 1]};
      store_pair(&to[i * kSubChunk + r][j * kSubChunk + c], pair);
    }
  }

  // to += a . the 16 rows from `first` on, in the channels of this warp.
  __device__ void add_product(const uint32_t (&a)[4], const bf16_t (*rows)[kRow], int first,
                              Tile& to) const {
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      load_right(b, rows, first, column_ + 8 * n);
      cuda::mma_bf16(to[n], a, b[0], b[1]);
      cuda::mma_bf16(to[n + 1], a, b[2], b[3]);
    }
  }

  // dots += sign factors . x, where `factors` are the rows of the sub-chunk.
  __device__ void add_dots(const bf16_t (*factors)[kRow], const Tile& x, float sign) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 factor = load_pair(&factors[lane_ / 4 + 8 * half][channel(n)]);
        dots_[n][2 * half] = fmaf(sign * factor.x, x[n][2 * half], dots_[n][2 * half]);
        dots_[n][2 * half + 1] = fmaf(sign * factor.y, x[n][2 * half + 1], dots_[n][2 * half + 1]);
      }
    }
  }

  __device__ void write_queries(int h, const Tile& d_q) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row(half) >= segment_.tokens) continue;
      bf16_t* to = static_cast<bf16_t*>(tensors_.d_q) + query_offset(row(half), h);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float2 decay = load_pair(&memory_.decays[row(half)][channel(n)]);
        store_pair(to + channel(n), decay * float2{d_q[n][2 * half], d_q[n][2 * half + 1]});
      }
    }
  }
  __device__ void write_values() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row(half) >= segment_.tokens) continue;
      bf16_t* to = static_cast<bf16_t*>(tensors_.d_v) + key_offset(row(half));
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        store_pair(to + channel(n), {d_v_[n][2 * half], d_v_[n][2 * half + 1]});
      }
    }
  }

  // `later`: v dS^T. Every lane replaces factors that it alone reads by parts of d_g.
  __device__ void write_keys(const Tile& later) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool exists = row(half) < segment_.tokens;
      const int64_t at = key_offset(exists ? row(half) : 0);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float2 after =
            exp2_of(memory_.gates.between(sub_chunk_ + 1, kGradientSubChunks, channel(n)));
        float* to_end = &memory_.to_end[row(half)][channel(n)];
        float* growth = &memory_.growth[row(half)][channel(n)];
        const float2 end = load_pair(to_end);
        const float2 from_later = end * after * float2{later[n][2 * half], later[n][2 * half + 1]};
        const float2 far = end * float2{far_[n][2 * half], far_[n][2 * half + 1]};
        const float2 near = load_pair(growth) * float2{near_[n][2 * half], near_[n][2 * half + 1]};
        store_pair(to_end, {dots_[n][2 * half], dots_[n][2 * half + 1]});
        store_pair(growth, load_pair(&memory_.raw_keys[row(half)][channel(n)]) * from_later);
        if (!exists) continue;
        store_pair(static_cast<bf16_t*>(tensors_.d_k) + at + channel(n), from_later + far + near);
      }
    }
  }

  Memory& memory_;
  const GradientTensors& tensors_;
  const Segment& segment_;
  int head_;
  int lane_ = static_cast<int>(threadIdx.x % 32);
  int warp_ = static_cast<int>(threadIdx.x / 32);
  int sub_chunk_ = warp_ / kParts;
  int token_ = sub_chunk_ * kSubChunk;
  int column_ = warp_ % kParts * (kDim / kParts);
  Tile d_v_ = {};
  Tile far_ = {};   // d_k from later sub-chunks, before the decay to the end of this one
  Tile near_ = {};  // from this one, before its growth from the anchor
  Tile dots_ = {};  // q . dq - k . dk, but for the part of k . dk that comes from later chunks
};

// Computed where needed: addresses kept for later would cost registers.
__device__ int64_t slot_of_block() { return int64_t{blockIdx.x} * gridDim.y + blockIdx.y; }
template <int kDim>
__device__ const float* state_at(const float* states) {
  return states + slot_of_block() * kDim * kDim;
}

template <int kDim>
__global__ void __launch_bounds__(kGradientThreads, 1)
    chunk_kernel(const __grid_constant__ Batch batch,
                 const __grid_constant__ GradientTensors tensors, const GradientScratch scratch) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<GradientMemory<kDim>*>(shared);
  const Tensors& forward = tensors.forward;
  const auto head = static_cast<int>(blockIdx.y);
  if (scratch.steep[slot_of_block()] != 0) return;
  const Segment segment = segment_of(batch, static_cast<int>(blockIdx.x));
  ChunkGradients<kDim> gradients(memory, tensors, segment, head);
  gradients.copy_keys_and_values();
  gradients.copy_head(0);
  constexpr int kLine = 32;  // floats
  if (threadIdx.x < kDim * kDim / kLine) {
    cuda::prefetch(state_at<kDim>(scratch.gradients) + threadIdx.x * kLine);
  }
  {
    GradientPreparation<kDim> preparation(memory, forward, segment, head);
    preparation.sum_gates();
    load_state<kDim>(state_at<kDim>(scratch.states), memory);
    cuda::wait_for_copies<1>();
    __syncthreads();
    preparation.write_factors();
  }
  for (int h = 0; h < forward.group; ++h) {
    cuda::wait_for_copies<0>();
    __syncthreads();  // the head has arrived, and nobody reads the one before any more
    gradients.copy_head(h + 1);
    gradients.anchor_queries(h);
    __syncthreads();
    gradients.score(h);
    __syncthreads();
    gradients.differentiate_queries(h);
    gradients.differentiate_keys(h);
  }
  gradients.finish_dots();
  __syncthreads();
  {
    GradientPreparation<kDim> preparation(memory, forward, segment, head);
    preparation.write_ends();
    load_state<kDim>(state_at<kDim>(scratch.gradients), memory, state_at<kDim>(scratch.states),
                     scratch.decays + slot_of_block() * kDim);
  }
  __syncthreads();
  gradients.finish();
  __syncthreads();
  write_gates<kDim>(tensors, segment, head, memory);
}

template <int kDim>
void launch(const GradientTensors& tensors, const Batch& batch, const GradientScratch& scratch,
            cudaStream_t stream) {
  constexpr int kBytes = sizeof(GradientMemory<kDim>);
  const dim3 grid(batch.segments, tensors.forward.kv_heads);
  cuda::allow_shared_memory(chunk_kernel<kDim>, kBytes);
  chunk_kernel<kDim><<<grid, kGradientThreads, kBytes, stream>>>(batch, tensors, scratch);
  cuda::check_launch("gated_linear_attention_backward: gradients of chunks");
}

}  // namespace

bool chunks_fit(int dim) {
  const auto limit = static_cast<size_t>(shared_memory_limit());
  return (dim == 128 ? sizeof(GradientMemory<128>) : sizeof(GradientMemory<64>)) <= limit;
}

void differentiate(const GradientTensors& tensors, const Batch& batch,
                   const GradientScratch& scratch, cudaStream_t stream) {
  const auto start = tensors.forward.key_dim == 128 ? launch<128> : launch<64>;
  start(tensors, batch, scratch, stream);
}

}  // namespace spb::ops::gated
