// The recurrent form, token by token: for single tokens of many sequences, where it reads and
// writes every state once, and for what the chunked form does not take (f32, other dims).
#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_batch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_cuda.h"

namespace spb::ops::gated {
namespace {

using cuda::Pack;

// A block has some columns of a state: 8 threads side by side for the columns, 32 groups of them
// for the rows. With four columns a thread, a warp moves four pieces of rows of 128 bytes at once.
constexpr int kColumnThreads = 8;
constexpr int kRowThreads = kThreads / kColumnThreads;
constexpr int kHeads = 8;  // query heads whose sums meet in shared memory at a time

__device__ float element(const void* tensor, bool bf16, int64_t index) {
  return bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(tensor)[index])
              : static_cast<const float*>(tensor)[index];
}

// kRows rows, kRowThreads apart, and kColumns neighboring columns of a state: the part of one
// thread. Rows and columns that do not exist stay zero.
template <typename T, int kRows, int kColumns>
class StatePart {
 public:
  __device__ explicit StatePart(const Tensors& tensors) : tensors_(tensors) {}

  __device__ int column() const { return column_; }

  __device__ void load(const float* state) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (exists(r)) at_[r] = Pack<float, kColumns>::load(state + offset(r));
    }
  }
  __device__ void store(float* state) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (exists(r)) at_[r].store(state + offset(r));
    }
  }

  // S <- diag(exp g) S + k^T v
  __device__ void advance(int64_t token) {
    if (column_ >= tensors_.value_dim) return;
    const int64_t row = token * tensors_.kv_heads + blockIdx.y;
    const auto v = Pack<T, kColumns>::load(static_cast<const T*>(tensors_.v) +
                                           row * tensors_.value_dim + column_);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!exists(r)) break;
      const int64_t index = row * tensors_.key_dim + channel(r);
      const float gate = element(tensors_.g, tensors_.bf16_gates, index);
      const float decay = expf(gate < kMinLogDecay ? kMinLogDecay : gate);
      const float k = cuda::to_float(static_cast<const T*>(tensors_.k)[index]);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        at_[r].at[c] = fmaf(at_[r].at[c], decay, k * cuda::to_float(v.at[c]));
      }
    }
  }

  // q S over the rows of this warp, the same in lanes that share columns.
  __device__ Pack<float, kColumns> read(const T* q) const {
    Pack<float, kColumns> sums = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!exists(r)) break;
      const float x = cuda::to_float(q[channel(r)]);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums.at[c] = fmaf(x, at_[r].at[c], sums.at[c]);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      sums.at[c] += __shfl_xor_sync(cuda::kFullWarp, sums.at[c], kColumnThreads);
      sums.at[c] += __shfl_xor_sync(cuda::kFullWarp, sums.at[c], 2 * kColumnThreads);
    }
    return sums;
  }

 private:
  __device__ int channel(int r) const { return row_ + r * kRowThreads; }
  __device__ bool exists(int r) const {
    return channel(r) < tensors_.key_dim && column_ < tensors_.value_dim;
  }
  __device__ int64_t offset(int r) const {
    return (int64_t{blockIdx.y} * tensors_.key_dim + channel(r)) * tensors_.value_dim + column_;
  }

  const Tensors& tensors_;
  int row_ = static_cast<int>(threadIdx.x) / kColumnThreads;
  int column_ =
      static_cast<int>(blockIdx.x * kColumnThreads + threadIdx.x % kColumnThreads) * kColumns;
  Pack<float, kColumns> at_[kRows] = {};
};

// The parts of all warps, added in their order and written as columns of `heads` query heads.
template <typename T, int kTile>
__device__ void write_sums(const float (&parts)[kHeads][kWarps][kTile], const Tensors& tensors,
                           T* o, int heads) {
  const auto first_column = static_cast<int>(blockIdx.x) * kTile;
  for (int i = static_cast<int>(threadIdx.x); i < heads * kTile; i += kThreads) {
    const int column = i % kTile;
    if (first_column + column >= tensors.value_dim) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[i / kTile][w][column];
    o[i / kTile * tensors.value_dim + first_column + column] =
        cuda::from_float<T>(sum * tensors.scale);
  }
}

// One block for each tile of columns, kv head and sequence.
template <typename T, int kRows, int kColumns>
__global__ void __launch_bounds__(kThreads)
    recurrent_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Tensors tensors) {
  constexpr int kTile = kColumnThreads * kColumns;
  // Two, so that one barrier separates the writes of one round from the reads of the one before.
  __shared__ float parts[2][kHeads][kWarps][kTile];
  const Sequence& sequence = batch.sequence[blockIdx.z];
  const auto warp = static_cast<int>(threadIdx.x) / 32;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  StatePart<T, kRows, kColumns> part(tensors);
  part.load(sequence.state);
  int round = 0;
  for (int64_t i = 0; i < sequence.tokens; ++i) {
    const int64_t token = sequence.first_token + i;
    part.advance(token);
    const int64_t first_row = (token * tensors.kv_heads + blockIdx.y) * tensors.group;
    for (int first = 0; first < tensors.group; first += kHeads) {
      const int heads = min(kHeads, tensors.group - first);
      const T* q = static_cast<const T*>(tensors.q) + (first_row + first) * tensors.key_dim;
      auto& own = parts[round++ % 2];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (h >= heads) break;
        const auto sums = part.read(q + h * tensors.key_dim);
        if (lane < kColumnThreads) sums.store(&own[h][warp][lane * kColumns]);
      }
      __syncthreads();
      write_sums(own, tensors, static_cast<T*>(tensors.o) + (first_row + first) * tensors.value_dim,
                 heads);
    }
  }
  part.store(sequence.state);
}

template <typename T, int kRows>
void launch(const Tensors& tensors, const Batch& batch, int columns, cudaStream_t stream) {
  const dim3 grid(recurrent_tiles(tensors), tensors.kv_heads, batch.sequences);
  if (columns == 4) {
    recurrent_kernel<T, kRows, 4><<<grid, kThreads, 0, stream>>>(batch, tensors);
  } else {
    recurrent_kernel<T, kRows, 1><<<grid, kThreads, 0, stream>>>(batch, tensors);
  }
  cuda::check_launch("gated_linear_attention: recurrent form");
}

// Columns of a thread: four where rows consist of whole packs.
int columns_of(const Tensors& tensors) {
  return tensors.value_dim % 4 == 0 && tensors.aligned ? 4 : 1;
}

}  // namespace

int recurrent_tiles(const Tensors& tensors) {
  const int tile = kColumnThreads * columns_of(tensors);
  return (tensors.value_dim + tile - 1) / tile;
}

void recur(const Tensors& tensors, const Batch& batch, cudaStream_t stream) {
  const int columns = columns_of(tensors);
  cuda::with_activation(tensors.bf16 ? DType::kBF16 : DType::kF32, [&](auto type) {
    using T = decltype(type);
    if (tensors.key_dim <= 2 * kRowThreads) {
      launch<T, 2>(tensors, batch, columns, stream);
    } else if (tensors.key_dim <= 4 * kRowThreads) {
      launch<T, 4>(tensors, batch, columns, stream);
    } else {
      static_assert(8 * kRowThreads >= kMaxCudaKeyDim);
      launch<T, 8>(tensors, batch, columns, stream);
    }
  });
}

}  // namespace spb::ops::gated
