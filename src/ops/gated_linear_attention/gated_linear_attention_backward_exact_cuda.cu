// The exact kernels of gated_linear_attention_backward: token by token in f32, all chunks at once.
// For f32, for dims that the tensor cores do not take, and for chunks whose gates are steep.
#include <type_traits>

#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_backward_batch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_backward_cuda.h"
#include "ops/gated_linear_attention/gated_linear_attention_chunk.cuh"

namespace spb::ops::gated {
namespace {

constexpr int kLanes = 16;  // half a warp: it has some rows of the state, each lane some columns
constexpr int kHalfWarps = kThreads / kLanes;

// kRows neighboring rows and kColumns columns, kLanes apart, of a state: the part of one thread.
// Rows and columns that do not exist stay zero.
template <int kRows, int kColumns>
struct StatePart {
  float at[kRows][kColumns] = {};
  int key_dim;
  int value_dim;
  int lane = static_cast<int>(threadIdx.x % kLanes);
  int channel = static_cast<int>(threadIdx.x / kLanes) * kRows;  // the first

  __device__ explicit StatePart(const Tensors& tensors)
      : key_dim(tensors.key_dim), value_dim(tensors.value_dim) {}

  // After sum_columns(): the row whose sum this lane holds, and whether it is to write it.
  static constexpr int kSharers = kLanes / kRows;
  __device__ int own_channel() const { return channel + lane / kSharers; }
  __device__ bool writes() const { return lane % kSharers == 0 && own_channel() < key_dim; }

  template <typename T>
  __device__ void load_channels(const T* row, float (&x)[kRows]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      x[r] = channel + r < key_dim ? cuda::to_float(row[channel + r]) : 0.0f;
    }
  }
  template <typename T>
  __device__ void load_columns(const T* row, float (&x)[kColumns]) const {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = lane + c * kLanes;
      x[c] = column < value_dim ? cuda::to_float(row[column]) : 0.0f;
    }
  }
  // Log decays, floored.
  __device__ void load_gates(const Tensors& tensors, int64_t row, float (&x)[kRows]) const {
    if (tensors.bf16_gates) {
      load_channels(static_cast<const bf16_t*>(tensors.g) + row * key_dim, x);
    } else {
      load_channels(static_cast<const float*>(tensors.g) + row * key_dim, x);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = x[r] < kMinLogDecay ? kMinLogDecay : x[r];
  }

  __device__ void load(const float* state) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (exists(r, c)) at[r][c] = state[(channel + r) * value_dim + lane + c * kLanes];
      }
    }
  }
  __device__ void store(float* state) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (exists(r, c)) state[(channel + r) * value_dim + lane + c * kLanes] = at[r][c];
      }
    }
  }

  __device__ void decay(const float (&gates)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float factor = expf(gates[r]);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) at[r][c] *= factor;
    }
  }
  __device__ void add_product(const float (&x)[kRows], const float (&y)[kColumns]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) at[r][c] = fmaf(x[r], y[c], at[r][c]);
    }
  }

  // Sums over all columns, for own_channel(): of state times y, or times another state.
  __device__ float sum_columns(const float (&y)[kColumns]) const {
    float x[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) x[r] = fmaf(at[r][c], y[c], x[r]);
    }
    return sum_lanes(x);
  }
  __device__ float sum_columns(const StatePart& other) const {
    float x[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) x[r] = fmaf(at[r][c], other.at[r][c], x[r]);
    }
    return sum_lanes(x);
  }

 private:
  __device__ bool exists(int r, int c) const {
    return channel + r < key_dim && lane + c * kLanes < value_dim;
  }

  // Lanes trade half of their rows until each has one.
  __device__ float sum_lanes(float (&x)[kRows]) const {
    int offset = kLanes / 2;
#pragma unroll
    for (int rows = kRows / 2; rows > 0; rows /= 2) {
      const bool upper = (lane & offset) != 0;
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        const float given = upper ? x[r] : x[r + rows];
        const float kept = upper ? x[r + rows] : x[r];
        x[r] = kept + __shfl_xor_sync(cuda::kFullWarp, given, offset);
      }
      offset /= 2;
    }
#pragma unroll
    for (; offset > 0; offset /= 2) x[0] += __shfl_xor_sync(cuda::kFullWarp, x[0], offset);
    return x[0];
  }
};

// Row of k, v and g of token i of a segment; its queries follow each other.
__device__ int64_t row_of(const Tensors& tensors, const Segment& segment, int i) {
  return (segment.first_token + i) * tensors.kv_heads + blockIdx.y;
}

__device__ bool is_floored(const Tensors& tensors, int64_t at) {
  const float gate = tensors.bf16_gates ? cuda::to_float(static_cast<const bf16_t*>(tensors.g)[at])
                                        : static_cast<const float*>(tensors.g)[at];
  return gate < kMinLogDecay;
}

// The state after a token from the one before it. `gates`: its log decays.
template <typename T, int kRows, int kColumns>
__device__ void advance(const Tensors& tensors, int64_t row, StatePart<kRows, kColumns>& state,
                        float (&gates)[kRows]) {
  float k[kRows];
  float v[kColumns];
  state.load_gates(tensors, row, gates);
  state.load_channels(static_cast<const T*>(tensors.k) + row * state.key_dim, k);
  state.load_columns(static_cast<const T*>(tensors.v) + row * state.value_dim, v);
  state.decay(gates);
  state.add_product(k, v);
}

// part += scale q^T d_o over the query heads of a row.
template <typename T, int kRows, int kColumns>
__device__ void add_queries(const GradientTensors& tensors, int64_t row,
                            StatePart<kRows, kColumns>& part) {
  const Tensors& forward = tensors.forward;
  for (int64_t h = row * forward.group; h < (row + 1) * forward.group; ++h) {
    float q[kRows];
    float d_o[kColumns];
    part.load_channels(static_cast<const T*>(forward.q) + h * part.key_dim, q);
    part.load_columns(static_cast<const T*>(tensors.d_o) + h * part.value_dim, d_o);
#pragma unroll
    for (int r = 0; r < kRows; ++r) q[r] *= forward.scale;
    part.add_product(q, d_o);
  }
}

// One block for each segment and kv head.
template <typename T, int kRows, int kColumns>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(const __grid_constant__ Batch batch,
                   const __grid_constant__ GradientTensors tensors, const GradientScratch scratch) {
  const Tensors& forward = tensors.forward;
  const Segment segment = segment_of(batch, static_cast<int>(blockIdx.x));
  const int64_t slot = int64_t{blockIdx.x} * forward.kv_heads + blockIdx.y;
  const int64_t at = slot * forward.key_dim * forward.value_dim;
  StatePart<kRows, kColumns> state(forward);
  float total[kRows] = {};
  for (int i = 0; i < segment.tokens; ++i) {
    const int64_t row = row_of(forward, segment, i);
    float gates[kRows];
    advance<T>(forward, row, state, gates);
#pragma unroll
    for (int r = 0; r < kRows; ++r) total[r] += gates[r];
  }
  state.store(scratch.states + at);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int channel = state.channel + r;
    if (state.lane == 0 && channel < state.key_dim) {
      scratch.decays[slot * state.key_dim + channel] = expf(total[r]);
    }
  }
  StatePart<kRows, kColumns> gradient(forward);
  for (int i = segment.tokens - 1; i >= 0; --i) {
    const int64_t row = row_of(forward, segment, i);
    float gates[kRows];
    add_queries<T>(tensors, row, gradient);
    gradient.load_gates(forward, row, gates);
    gradient.decay(gates);
  }
  gradient.store(scratch.gradients + at);
}

template <int kRows, int kColumns>
struct ExactMemory {
  float dots[kSegmentUnit][kRows * kHalfWarps];    // q . dq by token and channel
  float d_v[2][kThreads / 32][kColumns * kLanes];  // what each warp adds to d_v of a token
};

// d_q of the segment's tokens; `state` goes from before them to after them.
template <typename T, int kRows, int kColumns>
__device__ void go_forth(const GradientTensors& tensors, const Segment& segment,
                         StatePart<kRows, kColumns>& state, ExactMemory<kRows, kColumns>& memory) {
  const Tensors& forward = tensors.forward;
  for (int i = 0; i < segment.tokens; ++i) {
    const int64_t row = row_of(forward, segment, i);
    float gates[kRows];
    advance<T>(forward, row, state, gates);
    float dots = 0;
    for (int64_t h = row * forward.group; h < (row + 1) * forward.group; ++h) {
      float d_o[kColumns];
      state.load_columns(static_cast<const T*>(tensors.d_o) + h * state.value_dim, d_o);
      const float d_q = forward.scale * state.sum_columns(d_o);
      if (!state.writes()) continue;
      const int64_t at = h * state.key_dim + state.own_channel();
      static_cast<T*>(tensors.d_q)[at] = cuda::from_float<T>(d_q);
      dots = fmaf(cuda::to_float(static_cast<const T*>(forward.q)[at]), d_q, dots);
    }
    if (state.writes()) memory.dots[i][state.own_channel()] = dots;
  }
}

// d_v of a token: k^T times the gradient, over all rows.
template <typename T, int kRows, int kColumns>
__device__ void write_values(const GradientTensors& tensors, int64_t row, const float (&k)[kRows],
                             const StatePart<kRows, kColumns>& gradient,
                             float (*parts)[kColumns * kLanes]) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum = fmaf(k[r], gradient.at[r][c], sum);
    sum += __shfl_xor_sync(cuda::kFullWarp, sum, kLanes);
    if (threadIdx.x % 32 < kLanes) {
      parts[threadIdx.x / 32][gradient.lane + c * kLanes] = sum;
    }
  }
  __syncthreads();
  const auto column = static_cast<int>(threadIdx.x);
  if (column >= gradient.value_dim) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) sum += parts[w][column];
  static_cast<T*>(tensors.d_v)[row * gradient.value_dim + column] = cuda::from_float<T>(sum);
}

// d_k, d_v and d_g; `gradient` goes from after the segment to before it. `dots`: rowsum(S . dS)
// after the segment, of own_channel().
template <typename T, int kRows, int kColumns>
__device__ void go_back(const GradientTensors& tensors, const Segment& segment, float dots,
                        StatePart<kRows, kColumns>& gradient,
                        ExactMemory<kRows, kColumns>& memory) {
  const Tensors& forward = tensors.forward;
  for (int i = segment.tokens - 1; i >= 0; --i) {
    const int64_t row = row_of(forward, segment, i);
    float k[kRows];
    float v[kColumns];
    float gates[kRows];
    add_queries<T>(tensors, row, gradient);
    gradient.load_channels(static_cast<const T*>(forward.k) + row * gradient.key_dim, k);
    gradient.load_columns(static_cast<const T*>(forward.v) + row * gradient.value_dim, v);
    gradient.load_gates(forward, row, gates);
    const float d_k = gradient.sum_columns(v);
    if (gradient.writes()) {
      const int64_t at = row * gradient.key_dim + gradient.own_channel();
      const float key = cuda::to_float(static_cast<const T*>(forward.k)[at]);
      dots += memory.dots[i][gradient.own_channel()] - key * d_k;
      static_cast<T*>(tensors.d_k)[at] = cuda::from_float<T>(d_k);
      tensors.d_g[at] = is_floored(forward, at) ? 0.0f : dots;
    }
    write_values<T>(tensors, row, k, gradient, memory.d_v[i % 2]);
    gradient.decay(gates);
  }
}

// One block for each segment and kv head.
template <typename T, int kRows, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    differentiate_kernel(const __grid_constant__ Batch batch,
                         const __grid_constant__ GradientTensors tensors,
                         const GradientScratch scratch, bool only_steep) {
  __shared__ ExactMemory<kRows, kColumns> memory;
  const Tensors& forward = tensors.forward;
  const int64_t slot = int64_t{blockIdx.x} * forward.kv_heads + blockIdx.y;
  if (only_steep && scratch.steep[slot] == 0) return;
  const Segment segment = segment_of(batch, static_cast<int>(blockIdx.x));
  const int64_t at = slot * forward.key_dim * forward.value_dim;
  StatePart<kRows, kColumns> state(forward);
  state.load(scratch.states + at);
  go_forth<T>(tensors, segment, state, memory);
  StatePart<kRows, kColumns> gradient(forward);
  gradient.load(scratch.gradients + at);
  const float dots = gradient.sum_columns(state);
  go_back<T>(tensors, segment, dots, gradient, memory);
}

// Calls function(T(), part): `part` stands for the size of a thread's part of the state.
template <typename Function>
void with_part(const Tensors& tensors, Function function) {
  cuda::with_activation(tensors.bf16 ? DType::kBF16 : DType::kF32, [&](auto type) {
    if (tensors.key_dim <= 4 * kHalfWarps && tensors.value_dim <= 4 * kLanes) {
      function(type, std::integral_constant<int, 4>());
    } else {
      static_assert(8 * kHalfWarps >= kMaxCudaBackwardDim && 8 * kLanes >= kMaxCudaBackwardDim);
      function(type, std::integral_constant<int, 8>());
    }
  });
}

}  // namespace

void collect_exactly(const GradientTensors& tensors, const Batch& batch,
                     const GradientScratch& scratch, cudaStream_t stream) {
  const dim3 grid(batch.segments, tensors.forward.kv_heads);
  with_part(tensors.forward, [&](auto type, auto part) {
    collect_kernel<decltype(type), part(), part()>
        <<<grid, kThreads, 0, stream>>>(batch, tensors, scratch);
  });
  cuda::check_launch("gated_linear_attention_backward: collecting states exactly");
}

void differentiate_exactly(const GradientTensors& tensors, const Batch& batch,
                           const GradientScratch& scratch, bool only_steep, cudaStream_t stream) {
  const dim3 grid(batch.segments, tensors.forward.kv_heads);
  with_part(tensors.forward, [&](auto type, auto part) {
    differentiate_kernel<decltype(type), part(), part()>
        <<<grid, kThreads, 0, stream>>>(batch, tensors, scratch, only_steep);
  });
  cuda::check_launch("gated_linear_attention_backward: exact gradients");
}

}  // namespace spb::ops::gated
