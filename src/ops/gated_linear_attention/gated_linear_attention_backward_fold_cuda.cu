// From what every segment adds to the state before each, and in reverse to the gradient after each.
#include "core/cuda/launch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_backward_batch.cuh"

namespace spb::ops::gated {
namespace {

constexpr int kFoldThreads = 128;

// One thread for an element of the state of a sequence. Forward: x before segment i + 1 is
// decay_i x + added_i; backward: x after segment i - 1 is.
template <bool kBackward>
__device__ void fold_element(const Sequence& sequence, int element, int key_dim, int value_dim,
                             const float* from, float* added, const float* decays, float* to) {
  constexpr int kAhead = 16;  // segments whose loads are under way at once
  const auto segments =
      static_cast<int>((sequence.tokens + sequence.segment_tokens - 1) / sequence.segment_tokens);
  const int of_state = key_dim * value_dim;
  const int64_t end = int64_t{blockIdx.y} * of_state + element;
  const int row = element / value_dim;
  const auto slot = [&](int i) {
    const int segment = sequence.first_segment + (kBackward ? segments - 1 - i : i);
    return int64_t{segment} * gridDim.y + blockIdx.y;
  };
  float x = from == nullptr ? 0.0f : from[end];
  for (int first = 0; first < segments; first += kAhead) {
    float more[kAhead];
    float decay[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= segments) continue;
      more[i] = added[slot(first + i) * of_state + element];
      decay[i] = decays[slot(first + i) * key_dim + row];
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= segments) continue;
      added[slot(first + i) * of_state + element] = x;
      x = fmaf(x, decay[i], more[i]);
    }
  }
  if (to != nullptr) to[end] = x;
}

// Blocks of both directions: those of gradients follow those of states.
__global__ void __launch_bounds__(kFoldThreads)
    fold_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Ends ends,
                const GradientScratch scratch, int key_dim, int value_dim) {
  const auto element = static_cast<int>(blockIdx.x * kFoldThreads + threadIdx.x);
  if (element >= key_dim * value_dim) return;
  const auto i = static_cast<int>(blockIdx.z) % batch.sequences;
  const Sequence& sequence = batch.sequence[i];
  if (static_cast<int>(blockIdx.z) < batch.sequences) {
    fold_element<false>(sequence, element, key_dim, value_dim, ends.state[i], scratch.states,
                        scratch.decays, nullptr);
  } else {
    fold_element<true>(sequence, element, key_dim, value_dim, ends.d_final_state[i],
                       scratch.gradients, scratch.decays, ends.d_state[i]);
  }
}

}  // namespace

void fold(const GradientTensors& tensors, const Batch& batch, const Ends& ends,
          const GradientScratch& scratch, cudaStream_t stream) {
  const Tensors& forward = tensors.forward;
  const int64_t elements = int64_t{forward.key_dim} * forward.value_dim;
  const dim3 grid(static_cast<unsigned>(cuda::ceil_divide(elements, kFoldThreads)),
                  forward.kv_heads, 2 * batch.sequences);
  fold_kernel<<<grid, kFoldThreads, 0, stream>>>(batch, ends, scratch, forward.key_dim,
                                                 forward.value_dim);
  cuda::check_launch("gated_linear_attention_backward: folding states");
}

}  // namespace spb::ops::gated
