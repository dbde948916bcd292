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

// What a token brings, in shared memory: all of it is asked of memory at once.
template <int kRows, int kTile>
struct TokenMemory {
  float queries[kHeads][kRows * kRowThreads];
  float keys[kRows * kRowThreads];
  float decays[kRows * kRowThreads];
  float parts[kHeads][kWarps][kTile];  // products of each warp
};

// An element of the queries or keys.
template <typename T>
__device__ float load_mapped(const Tensors& tensors, const T* from) {
  const float x = cuda::to_float(*from);
  return tensors.rectify && x < 0 ? 0 : x;  // NaN stays NaN
}

template <typename T, int kRows>
__device__ void load_queries(const Tensors& tensors, int64_t first_row, int heads,
                             float (&to)[kHeads][kRows * kRowThreads]) {
  constexpr int kChannels = kRows * kRowThreads;
  const T* q = static_cast<const T*>(tensors.q) + first_row * tensors.key_dim;
#pragma unroll
  for (int pass = 0; pass < kHeads * kChannels / kThreads; ++pass) {
    const unsigned i = pass * kThreads + threadIdx.x;
    const int channel = static_cast<int>(i % kChannels);
    const int head = static_cast<int>(i / kChannels);
    const bool there = head < heads && channel < tensors.key_dim;
    to[head][channel] = there ? load_mapped(tensors, q + head * tensors.key_dim + channel) : 0.0f;
  }
}

template <typename T>
__device__ void load_key(const Tensors& tensors, int64_t row, float* keys, float* decays) {
  const auto channel = static_cast<int>(threadIdx.x);
  if (channel >= tensors.key_dim) return;
  const int64_t index = row * tensors.key_dim + channel;
  const float gate = tensors.bf16_gates
                         ? __bfloat162float(static_cast<const __nv_bfloat16*>(tensors.g)[index])
                         : static_cast<const float*>(tensors.g)[index];
  decays[channel] = expf(gate < kMinLogDecay ? kMinLogDecay : gate);
  keys[channel] = load_mapped(tensors, static_cast<const T*>(tensors.k) + index);
}

// kRows rows, kRowThreads apart, and kColumns neighboring columns of a state: the part of one
// thread. Rows and columns that do not exist stay zero.
template <int kRows, int kColumns>
class StatePart {
 public:
  __device__ explicit StatePart(const Tensors& tensors)
      : key_dim_(tensors.key_dim), value_dim_(tensors.value_dim) {}

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

  // S <- diag(decay) S + k^T v
  template <typename T>
  __device__ void advance(const float* keys, const float* decays, const Pack<T, kColumns>& v) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!exists(r)) break;
      const float decay = decays[channel(r)];
      const float k = keys[channel(r)];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        at_[r].at[c] = fmaf(at_[r].at[c], decay, k * cuda::to_float(v.at[c]));
      }
    }
  }

  // Products of q S over the rows of this warp, into its row of `parts`.
  __device__ void read(const float* query, float (*parts)[kColumnThreads * kColumns]) const {
    Pack<float, kColumns> sums = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float x = query[channel(r)];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums.at[c] = fmaf(x, at_[r].at[c], sums.at[c]);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      sums.at[c] += __shfl_xor_sync(cuda::kFullWarp, sums.at[c], kColumnThreads);
      sums.at[c] += __shfl_xor_sync(cuda::kFullWarp, sums.at[c], 2 * kColumnThreads);
    }
    const unsigned lane = threadIdx.x % 32;
    if (lane < kColumnThreads) sums.store(&parts[threadIdx.x / 32][lane * kColumns]);
  }

 private:
  __device__ int channel(int r) const { return row_ + r * kRowThreads; }
  __device__ bool exists(int r) const { return channel(r) < key_dim_ && column_ < value_dim_; }
  __device__ int64_t offset(int r) const {
    return (int64_t{blockIdx.y} * key_dim_ + channel(r)) * value_dim_ + column_;
  }

  int key_dim_;
  int value_dim_;
  int row_ = static_cast<int>(threadIdx.x / kColumnThreads);
  int column_ =
      static_cast<int>(blockIdx.x * kColumnThreads + threadIdx.x % kColumnThreads) * kColumns;
  Pack<float, kColumns> at_[kRows] = {};
};

// The parts of all warps, added in their order and written as columns of `heads` query heads.
template <typename T, int kTile>
__device__ void write_sums(const float (&parts)[kHeads][kWarps][kTile], const Tensors& tensors,
                           T* o, int heads) {
  const auto first_column = static_cast<int>(blockIdx.x) * kTile;
  const auto i = static_cast<int>(threadIdx.x);
  static_assert(kHeads * kTile <= kThreads);
  const int column = i % kTile;
  if (i / kTile >= heads || first_column + column >= tensors.value_dim) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += parts[i / kTile][w][column];
  o[i / kTile * tensors.value_dim + first_column + column] =
      cuda::from_float<T>(sum * tensors.scale);
}

// One block for each tile of columns, kv head and sequence.
template <typename T, int kRows, int kColumns>
__global__ void __launch_bounds__(kThreads)
    recurrent_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Tensors tensors) {
  constexpr int kTile = kColumnThreads * kColumns;
  __shared__ TokenMemory<kRows, kTile> memory;
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const Sequence& sequence = batch.sequence[blockIdx.z];
  StatePart<kRows, kColumns> part(tensors);
  part.load(sequence.state);
  for (int64_t i = 0; i < sequence.tokens; ++i) {
    const int64_t row = (sequence.first_token + i) * tensors.kv_heads + blockIdx.y;
    Pack<T, kColumns> v = {};
    if (part.column() < tensors.value_dim) {
      v = Pack<T, kColumns>::load(static_cast<const T*>(tensors.v) + row * tensors.value_dim +
                                  part.column());
    }
    load_key<T>(tensors, row, memory.keys, memory.decays);
    for (int first = 0; first < tensors.group; first += kHeads) {
      const int heads = min(kHeads, tensors.group - first);
      const int64_t first_row = row * tensors.group + first;
      load_queries<T, kRows>(tensors, first_row, heads, memory.queries);
      __syncthreads();
      if (first == 0) part.advance(memory.keys, memory.decays, v);
      for (int h = 0; h < heads; ++h) part.read(memory.queries[h], memory.parts[h]);
      __syncthreads();
      write_sums(memory.parts, tensors, static_cast<T*>(tensors.o) + first_row * tensors.value_dim,
                 heads);
    }
  }
  part.store(sequence.state);
}

template <typename T, int kRows>
void launch(Context& context, const Tensors& tensors, const Batch& batch, int columns) {
  const dim3 grid(recurrent_tiles(tensors), tensors.kv_heads, batch.sequences);
  const auto kernel = columns == 4 ? recurrent_kernel<T, kRows, 4> : recurrent_kernel<T, kRows, 1>;
  cuda::launch_early(context, "gated_linear_attention: recurrent form", grid, kThreads, 0, kernel,
                     batch, tensors);
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

void recur(Context& context, const Tensors& tensors, const Batch& batch) {
  const int columns = columns_of(tensors);
  cuda::with_activation(tensors.bf16 ? DType::kBF16 : DType::kF32, [&](auto type) {
    using T = decltype(type);
    if (tensors.key_dim <= 2 * kRowThreads) {
      launch<T, 2>(context, tensors, batch, columns);
    } else if (tensors.key_dim <= 4 * kRowThreads) {
      launch<T, 4>(context, tensors, batch, columns);
    } else {
      static_assert(8 * kRowThreads >= kMaxCudaKeyDim);
      launch<T, 8>(context, tensors, batch, columns);
    }
  });
}

}  // namespace spb::ops::gated
