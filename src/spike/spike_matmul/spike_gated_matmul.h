// spike_gated_matmul: what goes into the gate of a feed-forward network and what it opens, both
// products of the same spike counts, and their swiglu.
//
//   gate, up = spike_matmul(s, code_gate), spike_matmul(s, code_up)     no biases
//   y        = gate / (1 + exp(-gate)) * up
//
//   name           shape     access
//   s, v           [M, K]    read, from SpikeCounts as spike_matmul has it
//   gate, up       [N, K]    read: prepared weights
//   y              [M, N]    overwritten; f32 or bf16; apart from the counts
//
// Numerics: those of spike_matmul and ops/swiglu one after the other, bit for bit: gate and up are
// rounded to the dtype of y before they meet. Errors (kUsage) as there, and when N differs.
// Cost: two products. On Hopper, for prompts in bf16, the gate waits on the chip for up: of
// the five times that three operators write or read a matrix [M, N] one is left. Elsewhere: such a
// matrix from the arena.
#pragma once

#include "spike/spike_matmul/spike_matmul.h"

namespace spb::spike {

struct SpikeGatedMatmulArgs {
  const SpikeCounts* counts = nullptr;
  const SpikeWeight* gate = nullptr;
  const SpikeWeight* up = nullptr;
  TensorView y;
};

void spike_gated_matmul(Context& context, const SpikeGatedMatmulArgs& args);

}  // namespace spb::spike
