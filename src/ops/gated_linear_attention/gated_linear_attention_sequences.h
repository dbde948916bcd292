// A batch as its sequences, and these as parts, for the paths that take them one by one.
#pragma once

#include <algorithm>

#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {

// `count` tokens from `first` on; contiguous tensors.
template <typename View>
View tokens_of(const View& tensor, int64_t first, int64_t count) {
  const Shape& all = tensor.shape();
  return {tensor.row(first * all[1]), tensor.dtype(), Shape{count, all[1], all[2]}};
}
inline GatedLinearAttentionArgs tokens_of(const GatedLinearAttentionArgs& args, int64_t first,
                                          int64_t count) {
  const auto part = [&](const auto& tensor) { return tokens_of(tensor, first, count); };
  GatedLinearAttentionArgs some = args;
  some.sequences = {};
  some.q = part(args.q);
  some.k = part(args.k);
  some.v = part(args.v);
  some.g = part(args.g);
  some.o = part(args.o);
  return some;
}

// Calls function(args of one sequence), in order; contiguous tensors.
template <typename Function>
void for_each_sequence(const GatedLinearAttentionArgs& args, Function function) {
  if (args.sequences.empty()) return function(args);
  int64_t first = 0;
  for (const GatedLinearAttentionSequence& sequence : args.sequences) {
    GatedLinearAttentionArgs one = tokens_of(args, first, sequence.tokens);
    one.state = sequence.state;
    function(one);
    first += sequence.tokens;
  }
}

// Calls function(args of a part of one sequence, its place among boundary_states or undefined) for
// parts of boundary_interval tokens and what is left of each sequence.
template <typename Function>
void for_each_interval(const GatedLinearAttentionArgs& args, Function function) {
  int64_t boundary = 0;
  for_each_sequence(args, [&](const GatedLinearAttentionArgs& one) {
    const int64_t tokens = one.q.shape()[0];
    for (int64_t first = 0; first < tokens; first += args.boundary_interval) {
      const int64_t count = std::min(args.boundary_interval, tokens - first);
      GatedLinearAttentionArgs part = tokens_of(one, first, count);
      part.boundary_interval = 0;
      part.boundary_states = {};
      TensorView place;
      if (count == args.boundary_interval) {
        const Shape& all = args.boundary_states.shape();
        place = {args.boundary_states.row(boundary++ * all[1] * all[2]), DType::kF32,
                 Shape{all[1], all[2], all[3]}};
      }
      function(part, place);
    }
  });
}

}  // namespace spb::ops
