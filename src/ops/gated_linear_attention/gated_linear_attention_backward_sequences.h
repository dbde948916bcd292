// A batch of gated_linear_attention_backward as its sequences.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention_backward.h"
#include "ops/gated_linear_attention/gated_linear_attention_sequences.h"

namespace spb::ops {

// Calls function(args of one sequence), in order; contiguous tensors.
template <typename Function>
void for_each_sequence(const GatedLinearAttentionBackwardArgs& args, Function function) {
  if (args.sequences.empty()) return function(args);
  int64_t first = 0;
  for (const GatedLinearAttentionBackwardSequence& sequence : args.sequences) {
    const auto cut = [&](auto& tensor) { tensor = tokens_of(tensor, first, sequence.tokens); };
    GatedLinearAttentionBackwardArgs one = args;
    one.sequences = {};
    cut(one.q), cut(one.k), cut(one.v), cut(one.g), cut(one.d_o);
    cut(one.d_q), cut(one.d_k), cut(one.d_v), cut(one.d_g);
    one.state = sequence.state;
    one.d_final_state = sequence.d_final_state;
    one.d_state = sequence.d_state;
    function(one);
    first += sequence.tokens;
  }
}

}  // namespace spb::ops
