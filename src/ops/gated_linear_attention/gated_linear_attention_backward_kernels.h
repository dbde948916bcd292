// Kernels of gated_linear_attention_backward: plain pointers, no checks, no threads.
//
// A tile holds kChannelTile key channels of a state, [value_dim, kChannelTile]: rows of the state
// do not depend on each other, and a register holds several of them side by side. Channels that
// do not exist are zeros.
#pragma once

#include <cstdint>

#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::ops {

inline constexpr int64_t kBackwardBlock = 32;  // tokens whose states are held at once

struct GradientTokens : GatedTokens {
  const float* d_o;  // [tokens, group, value_dim]
  float* d_q;        // as q, k and g
  float* d_k;
  float* d_g;
};

struct BackwardKernels {
  // Advances the tile of the state from `channel` on over all tokens and writes d_q of its
  // channels.
  void (*advance)(const GradientTokens& tokens, int64_t channel, float* state);
  // Takes the tile of the gradient from the state after the tokens to the state before them, which
  // is `state`; writes d_k and d_g of its channels. `d_v` [tokens, value_dim] gets what these
  // channels add to the gradients of the values. `states` has room for a tile per token.
  void (*go_back)(const GradientTokens& tokens, int64_t channel, const float* state,
                  float* gradient, float* states, float* d_v);
};

}  // namespace spb::ops

namespace spb::isa_portable {
extern const ops::BackwardKernels kBackwardKernels;
}
namespace spb::isa_avx2 {
extern const ops::BackwardKernels kBackwardKernels;
}
namespace spb::isa_avx512 {
extern const ops::BackwardKernels kBackwardKernels;
}
