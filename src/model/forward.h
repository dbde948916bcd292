// forward: the model applied to new tokens of one or more sequences.
//
// Every slice continues its own sequence: `tokens` follow the positions its state has already seen,
// and the state is advanced. Slices of one call share the matrix products, so a batch of sequences
// decodes for little more than one. A sequence gives the same logits alone and in a batch whenever
// the products take the same numerical path (see ops/matmul/matmul.h).
// Laws: prefill(n) then decode(m) = prefill(n + m); chunked prefill = prefill at once.
#pragma once

#include <cstdint>
#include <span>

#include "model/activity.h"
#include "model/model.h"
#include "model/state.h"

namespace spb::model {

enum class Logits { kNone, kLast, kAll };  // for which tokens of a slice

struct SequenceSlice {
  std::span<const int32_t> tokens;  // 1 to state->max_chunk(), ids in [0, vocab_size)
  SequenceState* state = nullptr;
  Logits logits = Logits::kLast;
};

// Rows of logits the slices ask for, in order.
int64_t logits_rows(std::span<const SequenceSlice> slices);

// `logits` [logits_rows, vocab_size] f32, in host memory, is overwritten; it may be undefined when
// no row is asked for, and with an observer: then the head is left out. Usage error when a token is
// out of range or a state has no room; the states are then unchanged.
void forward(Context& context, const Model& model, std::span<const SequenceSlice> slices,
             TensorView logits, const ForwardHooks& hooks = {});

}  // namespace spb::model
