#include "model/sinks.h"

#include <cstring>

#include "model/forward_pass.h"

namespace spb::model {
namespace {

void run_sinks(Context& context, const Model& model, SequenceState& state) {
  const ForwardHooks no_hooks;
  ForwardPass pass(context, model, no_hooks);
  const Arena::Scope scope(context.arena());
  const int64_t count = model.config().sink_tokens;
  Batch batch;
  batch.sinks = true;
  batch.segments = {{&state, 0, count}};
  pass.start(batch, count);
  const ConstTensorView embeddings = model.sink_embeddings();
  std::memcpy(batch.delta.data(), embeddings.data(), static_cast<size_t>(embeddings.bytes()));
  for (int64_t layer = 0; layer < model.config().num_layers(); ++layer) {
    const Arena::Scope layer_scope(context.arena());
    // Nothing reads what the last layer makes of the sinks but the mixers' states.
    const TensorView mixed = pass.mix(layer, batch);
    if (layer + 1 < model.config().num_layers()) pass.finish_layer(layer, mixed, batch);
  }
}

}  // namespace

std::vector<std::unique_ptr<SequenceState>> read_sinks(Context& context, const Model& model) {
  std::vector<std::unique_ptr<SequenceState>> states;
  states.push_back(std::make_unique<SequenceState>(SequenceState::for_sinks(model.config())));
  run_sinks(context, model, *states[0]);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kI8}) {
    states.push_back(std::make_unique<SequenceState>(states[0]->rounded(dtype)));
  }
  return states;
}

}  // namespace spb::model
