// What a layer does after its mixers: output projection and feed-forward network.
#include <array>

#include "core/transfer.h"
#include "model/forward_pass.h"
#include "ops/matmul/gated_matmul.h"
#include "ops/moe/grouped_matmul.h"
#include "ops/moe/moe_dispatch.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/swiglu/swiglu.h"
#include "spike/spike_matmul/spike_gated_matmul.h"

namespace spb::model {

void ForwardPass::start(Batch& batch, int64_t count) {
  batch.residual = rows(count, config_.hidden_size);
}

TensorView ForwardPass::norm(const Batch& batch, const Tensor& weight) {
  const TensorView normed = rows(batch.rows(), config_.hidden_size);
  ops::rms_norm(context_, {batch.residual, {}, weight, normed, norm_eps()});
  return normed;
}

void ForwardPass::project_dense(ConstTensorView x, std::initializer_list<Output> outputs) {
  std::vector<ops::MatmulTarget> targets;
  for (const Output& output : outputs) {
    const ConstTensorView bias = output.projection->bias.defined()
                                     ? ConstTensorView(output.projection->bias)
                                     : ConstTensorView();
    targets.push_back({&output.projection->weight, bias, output.y, output.accumulate});
  }
  ops::matmul(context_, {x, targets});
}

void ForwardPass::project_onto_residual(Place place, ConstTensorView x,
                                        const Projection& projection, const Batch& batch,
                                        ConstTensorView up) {
  project(place, x, {{&projection, batch.residual, true}}, up);
}

void ForwardPass::finish_layer(int64_t index, ConstTensorView mixed, const Batch& batch) {
  const Layer& layer = model_.layer(index);
  project_onto_residual({index, Site::kMixerOutput}, mixed, layer.o, batch);
  if (layer.config.feed_forward == FeedForward::kNone) return;
  const TensorView normed = norm(batch, layer.mlp_norm);
  if (layer.config.feed_forward == FeedForward::kDense) {
    run_network(index, layer.dense, normed, batch);
  } else {
    run_experts(index, normed, batch);
  }
}

// Nothing but products goes into the gate, and nobody looks at what goes in.
bool ForwardPass::plain(const Network& network) const {
  return hooks_.observer == nullptr && !network.gate.spikes && !network.gate.bias.defined() &&
         !network.up.bias.defined();
}

bool ForwardPass::plain_spikes(Place in, const Network& network) const {
  return fires_unseen(in, network.gate) && !hooks_.verify_spikes && network.gate.codes.defined() &&
         !network.gate.bias.defined() && !network.up.bias.defined();
}

void ForwardPass::run_network(int64_t index, const Network& network, ConstTensorView x,
                              const Batch& batch) {
  const int64_t count = x.shape()[0];
  const Place in{index, Site::kFeedForwardInput};
  const Place out{index, Site::kFeedForwardOutput};
  const bool opened_spikes = fires_unseen(out, network.down);
  const TensorView gate = rows(count, network.gate.rows());
  if (plain(network)) {
    ops::gated_matmul(context_, {x, &network.gate.weight, &network.up.weight, gate});
  } else if (!opened_spikes && plain_spikes(in, network)) {
    const Arena::Scope scope(arena_);
    const spike::SpikeCounts counts = fire(in, x);
    spike::spike_gated_matmul(context_, {&counts, &network.gate.codes, &network.up.codes, gate});
  } else {
    const TensorView up = rows(count, network.up.rows());
    project(in, x, {{&network.gate, gate}, {&network.up, up}});
    if (opened_spikes) {
      return project_onto_residual(out, gate, network.down, batch, up);
    }
    ops::swiglu(context_, {gate, up, gate});
  }
  project_onto_residual(out, gate, network.down, batch);
}

// residual += shared experts + sum over the chosen experts of p_e E_e(x). Where activations are
// bf16 the residual is rounded after the shared ones and again after the others.
void ForwardPass::run_experts(int64_t index, ConstTensorView x, const Batch& batch) {
  const Layer& layer = model_.layer(index);
  if (layer.shared.defined()) run_network(index, layer.shared, x, batch);
  const ops::MoeChoices choices = choose_experts(index, x);
  const ops::MoePlan plan = ops::moe_plan(context_, {choices, config_.moe.num_experts});
  const TensorView grouped = rows(plan.rows(), config_.hidden_size);
  const TensorView gate = rows(plan.rows(), config_.moe.expert_size);
  const TensorView up = rows(plan.rows(), config_.moe.expert_size);
  const ops::GroupedMatmulTarget wide[] = {{layer.experts.gate, gate}, {layer.experts.up, up}};
  const ops::GroupedMatmulTarget narrow[] = {{layer.experts.down, grouped}};
  ops::moe_gather(context_, {plan, x, grouped});
  ops::grouped_matmul(context_, {grouped, plan.offsets, wide});
  ops::swiglu(context_, {gate, up, gate});
  ops::grouped_matmul(context_, {gate, plan.offsets, narrow});
  ops::moe_scatter(context_, {plan, grouped, choices.probabilities, batch.residual});
}

ops::MoeChoices ForwardPass::choose_experts(int64_t index, ConstTensorView x) {
  const MoeConfig& moe = config_.moe;
  const int64_t count = x.shape()[0];
  const TensorView logits = float_rows(count, moe.num_experts);
  ops::moe_logits(context_, {x, model_.layer(index).experts.router, logits});
  const Shape chosen{count, moe.experts_per_token};
  const ops::MoeChoices choices{arena_.tensor(DType::kI32, chosen), arena_.tensor(chosen)};
  ops::moe_route(context_, {logits, choices, moe.score, moe.renormalize});
  if (hooks_.expert_observer != nullptr) show_choices(index, logits, choices);
  return choices;
}

// The observer reads on the host.
void ForwardPass::show_choices(int64_t index, ConstTensorView logits,
                               const ops::MoeChoices& choices) {
  ExpertChoices seen{logits, choices.experts, choices.probabilities};
  std::array<Tensor, 3> copies;
  if (context_.device().is_cuda()) {
    size_t next = 0;
    for (ConstTensorView* view : {&seen.logits, &seen.experts, &seen.probabilities}) {
      Tensor& copy = copies[next++];
      copy = Tensor(view->dtype(), view->shape());
      to_host(context_, *view, copy);
      *view = copy;
    }
  }
  hooks_.expert_observer->on_choices(index, seen);
}

}  // namespace spb::model
