#include "model/forward.h"

#include <vector>

#include "core/error.h"
#include "core/transfer.h"
#include "model/forward_pass.h"
#include "ops/embedding/embedding.h"

namespace spb::model {
namespace {

int64_t wanted_rows(const SequenceSlice& slice) {
  switch (slice.logits) {
    case Logits::kNone: return 0;
    case Logits::kLast: return 1;
    case Logits::kAll: break;
  }
  return static_cast<int64_t>(slice.tokens.size());
}

// One run of the model over the rows of all slices.
class TextPass {
 public:
  TextPass(Context& context, const Model& model, const ForwardHooks& hooks,
           const StepMemory& memory)
      : context_(context), model_(model), memory_(memory), pass_(context, model, hooks) {}

  void run(std::span<const SequenceSlice> slices, TensorView logits) {
    const Arena::Scope scope(context_.arena());
    Batch batch = embed(slices);
    const int64_t last = model_.config().num_layers() - 1;
    for (int64_t layer = 0; layer < last; ++layer) {
      const Arena::Scope layer_scope(context_.arena());
      pass_.finish_layer(layer, pass_.mix(layer, batch), batch);
    }
    if (pass_.can_leave_out(last)) batch.asking = asking(slices);
    const TensorView mixed = pass_.mix(last, batch);
    batch.asking = asking(slices);
    finish(mixed, batch, logits);
  }

 private:
  Batch embed(std::span<const SequenceSlice> slices) {
    Batch batch;
    std::vector<int32_t> ids;
    for (const SequenceSlice& slice : slices) {
      const auto count = static_cast<int64_t>(slice.tokens.size());
      batch.segments.push_back({slice.state, static_cast<int64_t>(ids.size()), count});
      ids.insert(ids.end(), slice.tokens.begin(), slice.tokens.end());
      for (int64_t i = 0; i < count; ++i) batch.positions.push_back(slice.state->position() + i);
    }
    batch.asking = batch.segments;
    pass_.start(batch, static_cast<int64_t>(ids.size()));
    const bool on_device = memory_.ids != nullptr;
    const std::span<const int32_t> used(on_device ? memory_.ids : ids.data(), ids.size());
    ops::embedding(context_, {used, model_.embeddings(), batch.residual, on_device});
    return batch;
  }

  // The rows whose logits are wanted.
  static std::vector<Segment> asking(std::span<const SequenceSlice> slices) {
    std::vector<Segment> segments;
    int64_t end = 0;
    for (const SequenceSlice& slice : slices) {
      end += static_cast<int64_t>(slice.tokens.size());
      const int64_t count = wanted_rows(slice);
      if (count > 0) segments.push_back({slice.state, end - count, count});
    }
    return segments;
  }

  // The rest of the last layer and the head, only for the rows whose logits are wanted.
  void finish(TensorView mixed, Batch& batch, TensorView logits) {
    const int64_t wanted = batch.asking_rows();
    if (wanted == 0) return;
    const TensorView kept = mixed.shape()[0] == wanted ? mixed : pass_.keep_asking(batch, mixed);
    pass_.keep_asking(batch);
    pass_.finish_layer(model_.config().num_layers() - 1, kept, batch);
    if (memory_.logits.defined()) return multiply_head(batch, memory_.logits);
    if (!logits.defined()) return;
    if (!context_.device().is_cuda()) return multiply_head(batch, logits);
    const TensorView computed = context_.arena().tensor(logits.shape());
    multiply_head(batch, computed);
    to_host(context_, computed, logits);
  }

  void multiply_head(Batch& batch, TensorView logits) {
    const TensorView normed = pass_.norm(batch, model_.norm_weight());
    const ops::MatmulTarget target{&model_.head(), {}, logits};
    ops::matmul(context_, {normed, {&target, 1}});
  }

  Context& context_;
  const Model& model_;
  const StepMemory& memory_;
  ForwardPass pass_;
};

}  // namespace

void check_slices(const Model& model, std::span<const SequenceSlice> slices) {
  const int64_t vocab = model.config().vocab_size;
  check(!slices.empty(), "forward: slices: expected at least one");
  for (const SequenceSlice& slice : slices) {
    check(slice.state != nullptr, "forward: a slice has no state");
    check(slice.state->device() == model.device(), "forward: state: expected device {}, got {}",
          to_string(model.device()), to_string(slice.state->device()));
    slice.state->check_room(static_cast<int64_t>(slice.tokens.size()));
    for (const int32_t id : slice.tokens) {
      check(id >= 0 && id < vocab, "forward: token: expected an id from 0 to {}, got {}", vocab - 1,
            id);
    }
  }
}

namespace {

void check_logits(const Model& model, std::span<const SequenceSlice> slices, TensorView logits,
                  bool observed) {
  const int64_t vocab = model.config().vocab_size;
  const int64_t wanted = logits_rows(slices);
  check(wanted == 0 || (observed && !logits.defined()) ||
            (logits.defined() && logits.shape() == Shape{wanted, vocab} &&
             logits.dtype() == DType::kF32),
        "forward: logits: expected f32 [{}, {}], got {}", wanted, vocab,
        logits.shape().to_string());
}

}  // namespace

int64_t logits_rows(std::span<const SequenceSlice> slices) {
  int64_t total = 0;
  for (const SequenceSlice& slice : slices) total += wanted_rows(slice);
  return total;
}

void run_slices(Context& context, const Model& model, std::span<const SequenceSlice> slices,
                TensorView logits, const ForwardHooks& hooks, const StepMemory& memory) {
  TextPass(context, model, hooks, memory).run(slices, logits);
  for (const SequenceSlice& slice : slices) {
    slice.state->advance(static_cast<int64_t>(slice.tokens.size()));
  }
}

void forward(Context& context, const Model& model, std::span<const SequenceSlice> slices,
             TensorView logits, const ForwardHooks& hooks) {
  check(context.device() == model.device(), "forward: context: expected device {}, got {}",
        to_string(model.device()), to_string(context.device()));
  check(hooks.observer == nullptr || !model.device().is_cuda(),
        "forward: observer: activations are looked at on the CPU only, got device {}",
        to_string(model.device()));
  check_slices(model, slices);
  check_logits(model, slices, logits, hooks.observer != nullptr);
  run_slices(context, model, slices, logits, hooks);
}

}  // namespace spb::model
