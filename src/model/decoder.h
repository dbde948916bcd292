// Decoder: one more token for each of a fixed set of sequences, step after step.
//
// What forward() gives with a slice of one token for each sequence, with the same bits. On a CUDA
// device the kernels of a step are recorded as a graph once and queued with one call from then on;
// the logits stay there, and nothing waits for the host.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/cuda/cuda.h"
#include "model/forward.h"

namespace spb::model {

struct StepMemory;

class Decoder {
 public:
  // Context, model and states must outlive it, and the states keep their memory: none is replaced.
  // Usage error without states.
  Decoder(Context& context, const Model& model, std::vector<SequenceState*> states);

  // Feeds ids[i] to sequence i. Returns the logits [sequences, vocab_size] f32 in memory of the
  // context's device, valid until the next step. Errors as forward(). Sequences may go on by
  // forward() between steps; that costs recording anew. With hooks nothing is recorded.
  ConstTensorView step(std::span<const int32_t> ids, const ForwardHooks& hooks = {});

 private:
  bool continues_recording() const;
  void record(std::span<const SequenceSlice> slices);
  void send(std::span<const int32_t> ids, int64_t advance);
  StepMemory memory();

  Context& context_;
  const Model& model_;
  std::vector<SequenceState*> states_;
  Tensor logits_;
  // On a CUDA device: how far the sequences are past the recording, then the ids.
  Tensor inputs_;
  std::vector<std::byte> sent_;
  cuda::Graph graph_;
  std::vector<int64_t> recorded_;  // the positions that were recorded
  bool warm_ = false;              // a step was run, so that its memory is there
};

}  // namespace spb::model
