// A batch of sequences, cut into what is computed together.
#pragma once

#include <algorithm>
#include <span>

#include "core/error.h"
#include "ops/softmax_attention/softmax_attention_cuda.h"

namespace spb::ops {

// Tokens first .. first + count of a contiguous [L, heads, D]; others keep their layout and fail
// the check for contiguous rows later.
template <typename View>
View tokens_of(View tensor, int64_t first, int64_t count) {
  const Shape& all = tensor.shape();
  if (!tensor.contiguous()) return tensor;
  return View{tensor.row(first * all[1]), tensor.dtype(), Shape{count, all[1], all[2]}};
}

// Whether the sequences make up the tokens of x.
inline void check_batch(const char* operation, std::span<const CachedSequence> sequences,
                        ConstTensorView x) {
  check(x.shape().rank() == 3, "{}: expected [tokens, heads, head_dim], got {}", operation,
        x.shape());
  int64_t left = x.shape()[0];
  for (size_t i = 0; i < sequences.size(); ++i) {
    check(sequences[i].tokens >= 0 && sequences[i].tokens <= left,
          "{}: sequences[{}]: expected 0 to {} tokens, got {}", operation, i, left,
          sequences[i].tokens);
    left -= sequences[i].tokens;
  }
  check(left == 0, "{}: sequences: expected {} tokens, got {} less", operation, x.shape()[0], left);
}

// Calls function(first token, sequence).
template <typename Function>
void for_each_sequence(std::span<const CachedSequence> sequences, Function function) {
  int64_t first = 0;
  for (const CachedSequence& sequence : sequences) {
    function(first, sequence);
    first += sequence.tokens;
  }
}

// Calls function(first token, sequences): on a CUDA device neighbors of a single token and with
// caches alike together, as many as a launch takes, all others alone. All have been checked.
template <typename Function>
void for_each_launch(const Device& device, std::span<const CachedSequence> sequences,
                     Function function) {
  int64_t first = 0;
  while (!sequences.empty()) {
    const TensorView& keys = sequences[0].keys;
    const auto joins = [&](const CachedSequence& sequence) {
      return sequence.tokens == 1 && sequence.keys.dtype() == keys.dtype() &&
             sequence.keys.shape()[0] == keys.shape()[0];
    };
    const auto end = std::find_if_not(sequences.begin(), sequences.end(), joins);
    const auto singles = static_cast<int64_t>(end - sequences.begin());
    const int64_t count =
        device.is_cuda() ? std::clamp<int64_t>(singles, 1, kMaxBatchedSequences) : 1;
    const auto together = sequences.first(static_cast<size_t>(count));
    function(first, together);
    for (const CachedSequence& sequence : together) first += sequence.tokens;
    sequences = sequences.subspan(static_cast<size_t>(count));
  }
}

}  // namespace spb::ops
