// A batch as its sequences, for the paths that take them one by one.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {

// Calls function(args of one sequence), in order; contiguous tensors.
template <typename Function>
void for_each_sequence(const GatedLinearAttentionArgs& args, Function function) {
  if (args.sequences.empty()) return function(args);
  int64_t first = 0;
  for (const GatedLinearAttentionSequence& sequence : args.sequences) {
    const auto part = [&](auto tensor) {
      const Shape& all = tensor.shape();
      const Shape shape{sequence.tokens, all[1], all[2]};
      return decltype(tensor){tensor.row(first * all[1]), tensor.dtype(), shape};
    };
    GatedLinearAttentionArgs one = args;
    one.sequences = {};
    one.q = part(args.q);
    one.k = part(args.k);
    one.v = part(args.v);
    one.g = part(args.g);
    one.o = part(args.o);
    one.state = sequence.state;
    function(one);
    first += sequence.tokens;
  }
}

}  // namespace spb::ops
