// Projections whose inputs are spikes.
#include <cstring>

#include "core/error.h"
#include "model/forward_pass.h"
#include "spike/int8_rows/int8_rows.h"
#include "spike/threshold/spike_values.h"

namespace spb::model {

// Adds layer and site to an error; on a CUDA device also to those that kernels report later.
template <typename Action>
void ForwardPass::say_where(Place place, Action action) {
  const bool later = context_.device().is_cuda();
  try {
    if (later) {
      context_.stream().set_place(fmt::format("layer {}, site {}", place.layer, name(place.site)));
    }
    action();
    if (later) context_.stream().set_place("");
  } catch (const Error& error) {
    if (later) context_.stream().set_place("");
    throw Error(error.kind(),
                fmt::format("layer {}, site {}: {}", place.layer, name(place.site), error.what()));
  }
}

// All projections of a place spike, or none.
void ForwardPass::project(Place place, ConstTensorView x, std::initializer_list<Output> outputs,
                          ConstTensorView up) {
  if (hooks_.observer != nullptr) {
    hooks_.observer->on_activations(place.layer, place.site, x);
  }
  const Projection& first = *outputs.begin()->projection;
  if (!first.spikes) return project_dense(x, outputs);
  if (k_at(place) == 0) {
    check(first.weight.defined(), "layer {}, site {}: without spikes: expected float products",
          place.layer, name(place.site));
    return project_dense(x, outputs);
  }
  const Arena::Scope scope(arena_);
  const spike::SpikeCounts counts = fire(place, x, up);
  if (first.codes.defined()) return project_codes(place, counts, outputs);
  const TensorView values = rows(x.shape()[0], x.shape()[1]);
  spike::spike_values(context_, counts, values);
  project_dense(values, outputs);
}

bool ForwardPass::fires_unseen(Place place, const Projection& projection) const {
  return projection.spikes && hooks_.observer == nullptr && k_at(place) != 0;
}

spike::SpikeCounts ForwardPass::fire(Place place, ConstTensorView x, ConstTensorView up) {
  spike::SpikeCounts counts;
  counts.core = arena_.tensor(DType::kI8, x.shape());
  counts.thresholds = arena_.tensor(Shape{x.shape()[0]});
  const spike::ThresholdSettings settings{.k = k_at(place)};
  say_where(place, [&] {
    spike::spike_threshold(context_, {x, settings, &counts, x.shape()[0] == 1, up});
  });
  if (hooks_.observer != nullptr) hooks_.observer->on_spikes(place.layer, place.site, counts);
  return counts;
}

double ForwardPass::k_at(Place place) const {
  const SpikeConfig& spikes = hooks_.spikes != nullptr ? *hooks_.spikes : *config_.spikes;
  return spikes.at(place.layer, place.site);
}

void ForwardPass::fire_queries(int64_t index, TensorView q) {
  if (k_at({index, Site::kQuery}) == 0) return;
  const Arena::Scope scope(arena_);
  const TensorView per_head = q.reshaped(Shape{q.shape()[0] * config_.num_heads, config_.head_dim});
  spike::spike_values(context_, fire({index, Site::kQuery}, per_head), per_head);
}

void ForwardPass::round_heads(Place place, TensorView heads, DType cache) {
  const bool codes = cache == DType::kI8;
  if (k_at(place) == 0) {
    check(!codes, "layer {}, site {}: without rounding: expected a cache of floats, got i8",
          place.layer, name(place.site));
    return;
  }
  if (codes) return;
  const int64_t rows = heads.shape().elements() / config_.head_dim;
  say_where(place, [&] {
    spike::int8_rows(context_, heads.reshaped(Shape{rows, config_.head_dim}));
  });
}

void ForwardPass::project_codes(Place place, const spike::SpikeCounts& counts,
                                std::initializer_list<Output> outputs) {
  std::vector<spike::SpikeMatmulTarget> targets;
  std::vector<spike::SpikeMatmulTarget> trains;  // onto what stands there before the products
  for (const Output& output : outputs) {
    const Tensor& bias = output.projection->bias;
    targets.push_back({&output.projection->codes,
                       bias.defined() ? ConstTensorView(bias) : ConstTensorView(), output.y,
                       output.accumulate});
    if (!hooks_.verify_spikes) continue;
    trains.push_back(targets.back());
    trains.back().y = copy(output.y);
  }
  spike::spike_matmul(context_, {&counts, targets});
  for (size_t i = 0; i < trains.size(); ++i) {
    verify_spikes(place, counts, trains[i], targets[i].y);
  }
}

void ForwardPass::verify_spikes(Place place, const spike::SpikeCounts& counts,
                                const spike::SpikeMatmulTarget& train, ConstTensorView y) {
  spike::spike_matmul(context_, {&counts, {&train, 1}, spike::SpikePath::kPlanes});
  check_data(std::memcmp(train.y.data(), y.data(), static_cast<size_t>(y.bytes())) == 0,
             "layer {}, site {}: the spike train and the integer product differ", place.layer,
             name(place.site));
}

}  // namespace spb::model
