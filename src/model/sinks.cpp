#include "model/sinks.h"

#include "core/transfer.h"
#include "model/forward_pass.h"

namespace spb::model {
namespace {

// f32 between operators while it lasts.
class ExactActivations {
 public:
  explicit ExactActivations(Context& context)
      : context_(context), before_(context.activation_dtype()) {
    context.set_activation_dtype(DType::kF32);
  }
  ~ExactActivations() { context_.set_activation_dtype(before_); }
  ExactActivations(const ExactActivations&) = delete;
  ExactActivations& operator=(const ExactActivations&) = delete;

 private:
  Context& context_;
  DType before_;
};

void run_sinks(Context& context, const Model& model, SequenceState& state) {
  const ForwardHooks no_hooks;
  ForwardPass pass(context, model, no_hooks);
  const Arena::Scope scope(context.arena());
  const int64_t count = model.config().sink_tokens;
  Batch batch;
  batch.sinks = true;
  batch.segments = {{&state, 0, count}};
  batch.asking = batch.segments;
  pass.start(batch, count);
  copy_tensor(context, model.sink_embeddings(), batch.residual);
  for (int64_t layer = 0; layer < model.config().num_layers(); ++layer) {
    const Arena::Scope layer_scope(context.arena());
    // Nothing reads what the last layer makes of the sinks but the mixers' states.
    const TensorView mixed = pass.mix(layer, batch);
    if (layer + 1 < model.config().num_layers()) pass.finish_layer(layer, mixed, batch);
  }
}

}  // namespace

std::vector<std::unique_ptr<SequenceState>> read_sinks(Context& context, const Model& model) {
  const ExactActivations exact(context);
  SequenceState filled = SequenceState::for_sinks(model.config(), model.device());
  run_sinks(context, model, filled);
  if (context.device().is_cuda()) context.stream().synchronize();
  std::vector<std::unique_ptr<SequenceState>> states;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    states.push_back(std::make_unique<SequenceState>(filled.rounded(dtype)));
  }
  return states;
}

}  // namespace spb::model
