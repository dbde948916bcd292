#include "convert/spike_weights.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/widen.h"

namespace spb::convert {
namespace {

using model::Site;
using model::TensorUse;

// a x b, summed in double.
Tensor product(const Tensor& a, const Tensor& b) {
  Tensor out(DType::kF32, Shape{a.shape()[0], b.shape()[1]});
  std::vector<double> row(static_cast<size_t>(b.shape()[1]));
  for (int64_t n = 0; n < a.shape()[0]; ++n) {
    std::fill(row.begin(), row.end(), 0.0);
    for (int64_t r = 0; r < b.shape()[0]; ++r) {
      const double factor = a.view().row_as<float>(n)[r];
      for (size_t c = 0; c < row.size(); ++c) row[c] += factor * b.view().row_as<float>(r)[c];
    }
    std::copy(row.begin(), row.end(), out.view().row_as<float>(n));
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
  std::string name;
  model::LinearWeights source;
  ConstTensorView importance;
  int tensors = 0;  // planned, not yet written
  std::unique_ptr<model::ProjectionCodes> codes;
  CodeReport* report = nullptr;

  const model::ProjectionCodes& make(Context& context) {
    if (codes) return *codes;
    try {
      codes = std::make_unique<model::ProjectionCodes>(context, source, importance);
    } catch (const Error& error) {
      throw Error(error.kind(), fmt::format("tensor '{}': {}", name, error.what()));
    }
    report->codes = source.weight.shape().elements();
    report->beyond = static_cast<int64_t>(codes->source().residual.size());
    return *codes;
  }

  void written() {
    if (--tensors == 0) codes.reset();
  }
};

SpikeWeights::SpikeWeights(Context& context, const model::ModelConfig& source,
                           const model::ModelWeights& weights, const model::SpikeConfig& spikes,
                           const Importance& importance)
    : context_(context), config_(source), weights_(weights), importance_(importance) {
  config_.spikes = spikes;
  config_.architecture = "spikingbrain";
  if (config_.gate_low_rank > 0 && !config_.tied_gate) merge_gates(source);
  check_config(config_, "spike weights");
}

void SpikeWeights::merge_gates(const model::ModelConfig& source) {
  config_.gate_low_rank = 0;
  for (int64_t layer = 0; layer < source.num_layers(); ++layer) {
    model::LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    if (!w.gate_down.weight.defined()) continue;
    merged_.push_back(product(widened(w.gate_up.weight), widened(w.gate_down.weight)));
    w.gate.weight = merged_.back();
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
    current_->name = name;
    current_->source.weight = *slot.view;
    current_->importance = importance_of(slot);
    current_->report = &reports_.emplace_back(CodeReport{name});
    plan({name, DType::kI8, slot.shape, {}}, plans,
         [](const spike::SpikeWeightSource& made, std::span<std::byte> out) {
           copy_to(out, made.codes);
         });
    return;
  }
  if (slot.use == TensorUse::kScales && slot.optional) {  // of a matrix that stays as it is
    if (!slot.view->defined()) return;
    // In their own dtype: quotients of bf16 weights and bf16 scales are bf16.
    plans.push_back({name, slot.view->dtype(), slot.shape,
                     [view = *slot.view](std::span<std::byte> out) { copy_to(out, view); }});
    return;
  }
  if (slot.use == TensorUse::kScales) {
    current_->source.scales = *slot.view;
    plan({name, DType::kF32, slot.shape, {}}, plans,
         [](const spike::SpikeWeightSource& made, std::span<std::byte> out) {
           copy_to(out, made.scales);
         });
    return;
  }
  // A residual's size must be known before anything is written; only given scales cause one.
  current_->source.residual = *slot.view;
  if (!current_->source.scales.defined()) return;
  current_->make(context_);
  current_->codes.reset();
  const int64_t entries = current_->report->beyond;
  if (entries == 0) return;
  plan({name, DType::kI32, Shape{entries, 3}, {}}, plans,
       [](const spike::SpikeWeightSource& made, std::span<std::byte> out) {
         std::memcpy(out.data(), made.residual.data(), made.residual.size_bytes());
       });
}

void SpikeWeights::plan(io::GgufTensorPlan tensor, std::vector<io::GgufTensorPlan>& plans,
                        const FillFunction& fill) {
  ++current_->tensors;
  tensor.fill = [this, fill, matrix = current_](std::span<std::byte> out) {
    fill(matrix->make(context_).source(), out);
    matrix->written();
  };
  plans.push_back(std::move(tensor));
}

}  // namespace spb::convert
