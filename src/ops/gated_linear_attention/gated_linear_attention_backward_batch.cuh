// What the CUDA kernels of gated_linear_attention_backward are launched with.
//
// A segment is one chunk of kSegmentUnit tokens: the states before every chunk and the gradients
// after it are made first, then all chunks run at once. `Batch` says how sequences are cut; their
// states are in `Ends`.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_batch.cuh"

namespace spb::ops::gated {

struct GradientTensors {
  Tensors forward;  // o is absent
  const void* d_o = nullptr;
  void* d_q = nullptr;
  void* d_k = nullptr;
  void* d_v = nullptr;
  float* d_g = nullptr;
};

// Of every sequence of a batch. [kv heads, K, V]; what is nullptr is zero, or not wanted.
struct Ends {
  const float* state[kMaxSequences];
  const float* d_final_state[kMaxSequences];
  float* d_state[kMaxSequences];
};

struct GradientScratch {
  float* states;     // [segments, kv heads, K, V]: the state before the segment
  float* gradients;  // the same: the gradient of the state after it
  float* decays;     // [segments, kv heads, K]
  int* steep;        // [segments, kv heads]: whether only the exact kernel can do it
};

// Exact kernels: f32 arithmetic, any type, K and V at most kMaxCudaBackwardDim.
// What every segment adds to the state and to the gradient, and its decay, into the scratch.
void collect_exactly(const GradientTensors& tensors, const Batch& batch,
                     const GradientScratch& scratch, cudaStream_t stream);
// From there to the states before, and the gradients after every segment, and d_state.
void fold(const GradientTensors& tensors, const Batch& batch, const Ends& ends,
          const GradientScratch& scratch, cudaStream_t stream);
// The gradients of the tokens, after that; of all segments or of the steep ones.
void differentiate_exactly(const GradientTensors& tensors, const Batch& batch,
                           const GradientScratch& scratch, bool only_steep, cudaStream_t stream);

}  // namespace spb::ops::gated
