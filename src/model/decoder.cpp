#include "model/decoder.h"

#include <cstring>

#include "core/error.h"
#include "model/forward_pass.h"

namespace spb::model {
namespace {

constexpr auto kIdsOffset = static_cast<int64_t>(sizeof(int64_t));

int64_t input_bytes(size_t sequences) {
  return kIdsOffset + static_cast<int64_t>(sequences * sizeof(int32_t));
}

// Operators add an advance to positions while this lives.
class AdvanceScope {
 public:
  AdvanceScope(Context& context, const int64_t* advance) : context_(context) {
    context.set_advance(advance);
  }
  ~AdvanceScope() { context_.set_advance(nullptr); }
  AdvanceScope(const AdvanceScope&) = delete;
  AdvanceScope& operator=(const AdvanceScope&) = delete;

 private:
  Context& context_;
};

bool empty(const ForwardHooks& hooks) {
  return hooks.observer == nullptr && hooks.expert_observer == nullptr && hooks.spikes == nullptr &&
         !hooks.verify_spikes;
}

}  // namespace

Decoder::Decoder(Context& context, const Model& model, std::vector<SequenceState*> states)
    : context_(context), model_(model), states_(std::move(states)) {
  check(!states_.empty(), "decoder: expected at least one sequence");
  check(context.device() == model.device(), "decoder: context: expected device {}, got {}",
        to_string(model.device()), to_string(context.device()));
  const auto count = static_cast<int64_t>(states_.size());
  logits_ = Tensor(DType::kF32, Shape{count, model.config().vocab_size}, context.device());
  if (!context.device().is_cuda()) return;
  inputs_ = Tensor(DType::kI8, Shape{input_bytes(states_.size())}, context.device());
  sent_.resize(static_cast<size_t>(inputs_.bytes()));
}

ConstTensorView Decoder::step(std::span<const int32_t> ids, const ForwardHooks& hooks) {
  check(ids.size() == states_.size(), "decoder: ids: expected {}, got {}", states_.size(),
        ids.size());
  std::vector<SequenceSlice> slices;
  for (size_t i = 0; i < ids.size(); ++i) {
    slices.push_back({ids.subspan(i, 1), states_[i], Logits::kLast});
  }
  if (!context_.device().is_cuda()) {
    forward(context_, model_, slices, logits_, hooks);
    return logits_;
  }
  check_slices(model_, slices);
  const bool recordable =
      empty(hooks) && static_cast<int64_t>(ids.size()) <= kMaxRecordedRows && warm_;
  if (recordable && !continues_recording()) record(slices);
  const bool played = recordable && graph_.defined();
  send(ids, played ? states_[0]->position() - recorded_[0] : 0);
  if (played) {
    context_.stream().launch(graph_);
    for (SequenceState* state : states_) state->advance(1);
  } else {
    run_slices(context_, model_, slices, {}, hooks, memory());
    warm_ = true;
  }
  return logits_;
}

// All sequences have moved on from the recording by the same number of tokens.
bool Decoder::continues_recording() const {
  if (!graph_.defined()) return false;
  const int64_t advance = states_[0]->position() - recorded_[0];
  for (size_t i = 0; i < states_.size(); ++i) {
    if (states_[i]->position() - recorded_[i] != advance) return false;
  }
  return advance >= 0;
}

void Decoder::record(std::span<const SequenceSlice> slices) {
  graph_ = cuda::Graph();  // of other positions: if recording fails, nothing may play it
  recorded_.clear();
  for (const SequenceState* state : states_) recorded_.push_back(state->position());
  const AdvanceScope scope(context_, reinterpret_cast<const int64_t*>(inputs_.view().data()));
  graph_ = context_.stream().record(
      [&] { run_slices(context_, model_, slices, {}, ForwardHooks(), memory()); });
  for (SequenceState* state : states_) state->advance(-1);  // nothing was run yet
}

StepMemory Decoder::memory() {
  return {reinterpret_cast<const int32_t*>(inputs_.view().data() + kIdsOffset), logits_};
}

void Decoder::send(std::span<const int32_t> ids, int64_t advance) {
  std::memcpy(sent_.data(), &advance, sizeof(advance));
  std::memcpy(sent_.data() + kIdsOffset, ids.data(), ids.size_bytes());
  context_.stream().copy_to_device(inputs_.view().data(), sent_.data(), inputs_.bytes());
}

}  // namespace spb::model
