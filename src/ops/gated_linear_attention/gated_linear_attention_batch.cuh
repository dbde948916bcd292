// What the CUDA kernels of gated_linear_attention are launched with.
//
// A batch is cut into segments, a segment into chunks, a chunk into sub-chunks of 16 tokens. How a
// sequence is cut depends on nothing but its own length and the number of heads, so that a sequence
// gives the same bits alone and in any batch, on any card.
#pragma once

#include <cstdint>

#include "core/cuda/launch.cuh"

namespace spb::ops::gated {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kSubChunk = 16;
inline constexpr int kSegmentUnit = 64;  // tokens; segments are multiples of it

// A launch takes its table of sequences by value: parameters of a kernel hold 4 KiB.
inline constexpr int kMaxSequences = 64;

struct Sequence {
  int64_t first_token;
  int64_t tokens;  // > 0
  float* state;    // [kv heads, K, V]
  int first_segment;
  int segment_tokens;
};

struct Batch {
  Sequence sequence[kMaxSequences];
  int sequences = 0;
  int segments = 0;
};

// Strides are those of contiguous [tokens, heads, dim].
struct Tensors {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* g = nullptr;
  void* o = nullptr;
  bool bf16 = false;  // q, k, v, o; else f32
  bool bf16_gates = false;
  bool aligned = false;  // these and the states to 16 bytes
  int kv_heads = 0;
  int group = 0;  // query heads per kv head
  int key_dim = 0;
  int value_dim = 0;
  float scale = 1;
  bool rectify = false;  // q and k
};

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// What both passes read.
template <typename Args>
Tensors inputs_of(const Args& args) {
  const int64_t kv_heads = args.k.shape()[1];
  Tensors tensors{};
  tensors.q = args.q.data();
  tensors.k = args.k.data();
  tensors.v = args.v.data();
  tensors.g = args.g.data();
  tensors.bf16 = args.q.dtype() == DType::kBF16;
  tensors.bf16_gates = args.g.dtype() == DType::kBF16;
  tensors.aligned =
      aligned(tensors.q) && aligned(tensors.k) && aligned(tensors.v) && aligned(tensors.g);
  tensors.kv_heads = static_cast<int>(kv_heads);
  tensors.group = static_cast<int>(args.q.shape()[1] / kv_heads);
  tensors.key_dim = static_cast<int>(args.k.shape()[2]);
  tensors.value_dim = static_cast<int>(args.v.shape()[2]);
  tensors.scale = args.scale;
  return tensors;
}

// Token by token: any type, any dims with at most kMaxCudaKeyDim key channels. `o` may be `q` only
// if there is a single tile of columns.
int recurrent_tiles(const Tensors& tensors);
void recur(Context& context, const Tensors& tensors, const Batch& batch);

// Chunk by chunk: bf16, key_dim = value_dim = 64 or 128, everything aligned.
struct Scratch {
  float* states;  // [segments, kv heads, K, V]
  float* decays;  // [segments, kv heads, K]
};
// The state before every segment into the scratch, and the final ones into the sequences'.
void collect_states(const Tensors& tensors, const Batch& batch, const Scratch& scratch,
                    cudaStream_t stream);
// The outputs, after that.
void read_states(const Tensors& tensors, const Batch& batch, const Scratch& scratch,
                 cudaStream_t stream);

int shared_memory_limit();  // bytes that a block of the current device may use

}  // namespace spb::ops::gated
