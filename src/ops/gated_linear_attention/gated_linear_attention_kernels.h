// Kernels of gated_linear_attention: plain pointers, no checks, no threads. One table per
// instruction set; the *_cpu.cpp files split the work over them.
#pragma once

#include <cstdint>

namespace spb::ops {

inline constexpr int64_t kChunk = 32;                        // tokens of a chunk
inline constexpr int64_t kSubChunk = 16;                     // tokens of a sub-chunk
inline constexpr int64_t kEarlierKeys = kChunk - kSubChunk;  // before the last sub-chunk
inline constexpr int64_t kChannelTile = 16;  // channels are padded to whole registers

// Some tokens of one key/value head and the query heads that read it. Strides, in floats, lead from
// one token to the next; heads of the group lie behind each other.
struct GatedTokens {
  const float* q;    // [tokens, group, key_dim]
  const float* k;    // [tokens, key_dim]
  const float* v;    // [tokens, value_dim]
  const float* g;    // [tokens, key_dim], unclamped
  int64_t q_stride;  // of q and its gradient
  int64_t k_stride;  // of k and g and their gradients
  int64_t v_stride;
  int64_t o_stride;
  int64_t tokens;
  int64_t group;
  int64_t key_dim;
  int64_t value_dim;
  float scale;
  float* o = nullptr;  // [tokens, group, value_dim]; of the forward pass
};

struct RecurrentKernels {
  // Token by token over columns [first_column, first_column + columns) of the values, the state
  // [key_dim, value_dim] and the outputs. `decay` holds padded_channels(key_dim) floats.
  void (*recur)(const GatedTokens& tokens, int64_t first_column, int64_t columns, float* state,
                float* decay);
};

struct ChunkedKernels {
  // Advances rows [channel, channel + kChannelTile) of the state over up to kChunk tokens.
  // `keys` holds kChunk * kChannelTile floats.
  void (*advance)(const GatedTokens& tokens, int64_t channel, float* state, float* keys);
  // Outputs of up to kChunk tokens from the state before them. `scratch` holds
  // chunk_scratch_floats().
  void (*read_chunk)(const GatedTokens& tokens, const float* state, float* scratch);
};

struct GatedInputKernels {
  void (*rectify)(float* x, int64_t count);                 // max(x, 0)
  void (*squash)(float* x, int64_t count);                  // sigmoid(x)
  void (*log_gate)(float* z, int64_t count, float factor);  // logsigmoid(z) * factor
  void (*tied_gate)(float* k, float* g, int64_t count);     // sigmoid(z) and -softplus(z), z in k
};

inline int64_t padded_channels(int64_t key_dim) {
  return (key_dim + kChannelTile - 1) / kChannelTile * kChannelTile;
}

// Decays from the start of the chunk, from the start of the sub-chunk and of every token; scaled
// queries; keys of earlier sub-chunks by channel; decayed keys of one sub-chunk; and a weight for
// every query and key.
inline int64_t chunk_scratch_floats(int64_t key_dim, int64_t group) {
  const int64_t queries = group * kSubChunk > kChunk ? group * kSubChunk : kChunk;
  const int64_t rows = 3 * kChunk + queries + kEarlierKeys + kSubChunk;
  return rows * padded_channels(key_dim) + group * kChunk * kChunk;
}

}  // namespace spb::ops

namespace spb::isa_portable {
extern const ops::RecurrentKernels kRecurrentKernels;
extern const ops::ChunkedKernels kChunkedKernels;
extern const ops::GatedInputKernels kGatedInputKernels;
}  // namespace spb::isa_portable
namespace spb::isa_avx2 {
extern const ops::RecurrentKernels kRecurrentKernels;
extern const ops::ChunkedKernels kChunkedKernels;
extern const ops::GatedInputKernels kGatedInputKernels;
}  // namespace spb::isa_avx2
namespace spb::isa_avx512 {
extern const ops::RecurrentKernels kRecurrentKernels;
extern const ops::ChunkedKernels kChunkedKernels;
extern const ops::GatedInputKernels kGatedInputKernels;
}  // namespace spb::isa_avx512
