#include "convert/spike_weights.h"

#include <cstring>

#include "core/block_formats.h"
#include "core/error.h"

namespace spb::convert {
namespace {

using model::Site;
using model::TensorUse;

Tensor widened(ConstTensorView view) {
  Tensor out(DType::kF32, view.shape());
  for (int64_t row = 0; row < view.shape().rows(); ++row) {
    dequantize_row(view.dtype(), view.row(row), out.view().row_as<float>(row), view.shape().last());
  }
  return out;
}

void copy_to(std::span<std::byte> out, ConstTensorView view) {
  for (int64_t row = 0; row < view.shape().rows(); ++row) {
    const auto bytes = static_cast<size_t>(view.row_bytes_used());
    std::memcpy(out.data() + static_cast<size_t>(row) * bytes, view.row(row), bytes);
  }
}

}  // namespace

// The codes are made when the first of its tensors is written and dropped after the last.
struct SpikeWeights::Matrix {
  model::LinearWeights source;
  ConstTensorView importance;
  std::unique_ptr<model::ProjectionCodes> codes;
  CodeReport* report = nullptr;

  void make(Context& context) {
    if (codes) return;
    codes = std::make_unique<model::ProjectionCodes>(context, source, importance);
    report->codes = source.weight.shape().elements();
    report->beyond = static_cast<int64_t>(codes->source().residual.size());
  }
};

SpikeWeights::SpikeWeights(Context& context, const model::ModelConfig& source,
                           const model::ModelWeights& weights, double k,
                           const Importance& importance)
    : context_(context), config_(source), weights_(weights), importance_(importance) {
  config_.spikes = model::SpikeConfig{k};
  config_.architecture = "spikingbrain";
  if (config_.gate_low_rank > 0 && !config_.tied_gate) merge_gates(source);
  check_config(config_, "spike weights");
}

// gate = up x down, computed as a product of the columns of down.
void SpikeWeights::merge_gates(const model::ModelConfig& source) {
  config_.gate_low_rank = 0;
  for (int64_t layer = 0; layer < source.num_layers(); ++layer) {
    model::LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    if (!w.gate_down.weight.defined()) continue;
    const Tensor down = widened(w.gate_down.weight);  // [rank, hidden]
    const Tensor up = widened(w.gate_up.weight);      // [kv, rank]
    Tensor& gate = merged_.emplace_back(DType::kF32, Shape{up.shape()[0], down.shape()[1]});
    for (int64_t n = 0; n < up.shape()[0]; ++n) {
      std::vector<double> row(static_cast<size_t>(down.shape()[1]));
      for (int64_t r = 0; r < down.shape()[0]; ++r) {
        const double factor = up.view().row_as<float>(n)[r];
        for (size_t c = 0; c < row.size(); ++c) row[c] += factor * down.view().row_as<float>(r)[c];
      }
      std::copy(row.begin(), row.end(), gate.view().row_as<float>(n));
    }
    w.gate.weight = gate;
    w.gate.bias = w.gate_up.bias;
  }
}

ConstTensorView SpikeWeights::importance_of(const model::TensorSlot& slot) const {
  const Site site = slot.role.starts_with("attn_output") ? Site::kMixerOutput
                    : slot.role.starts_with("attn_")     ? Site::kMixerInput
                    : slot.role.starts_with("ffn_down")  ? Site::kFeedForwardOutput
                                                         : Site::kFeedForwardInput;
  return importance_.at(slot.layer, site);
}

void SpikeWeights::add(const model::TensorSlot& slot, std::vector<io::GgufTensorPlan>& plans) {
  const std::string name = model::tensor_name(slot, model::Naming::kGguf);
  if (slot.use == TensorUse::kCodes) {
    current_ = std::make_shared<Matrix>();
    current_->source.weight = *slot.view;
    current_->importance = importance_of(slot);
    current_->report = &reports_.emplace_back(CodeReport{name});
    plans.push_back({name, DType::kI8, slot.shape, [this, m = current_](std::span<std::byte> out) {
                       m->make(context_);
                       copy_to(out, m->codes->source().codes);
                     }});
    return;
  }
  if (slot.use == TensorUse::kScales && slot.optional) {  // of a matrix that stays as it is
    if (!slot.view->defined()) return;
    plans.push_back({name, DType::kF32, slot.shape, [view = *slot.view](std::span<std::byte> out) {
                       copy_to(out, widened(view));
                     }});
    return;
  }
  if (slot.use == TensorUse::kScales) {
    current_->source.scales = *slot.view;
    plans.push_back({name, DType::kF32, slot.shape, [this, m = current_](std::span<std::byte> out) {
                       m->make(context_);
                       copy_to(out, m->codes->source().scales);
                     }});
    return;
  }
  // A residual's size must be known before anything is written; only given scales cause one.
  current_->source.residual = *slot.view;
  if (!current_->source.scales.defined()) return;
  current_->make(context_);
  const int64_t entries = current_->report->beyond;
  if (entries == 0) return;
  plans.push_back({name, DType::kI32, Shape{entries, 3}, [m = current_](std::span<std::byte> out) {
                     const auto residual = m->codes->source().residual;
                     std::memcpy(out.data(), residual.data(), residual.size_bytes());
                   }});
}

}  // namespace spb::convert
