#include "convert/calibration.h"

#include <algorithm>

#include "core/error.h"
#include "model/forward.h"
#include "spike/threshold/spike_values.h"

namespace spb::convert {
namespace {

// Sums the squares of what projections would read, by channel and in double: texts are long.
class EnergySums : public model::ActivityObserver {
 public:
  EnergySums(Context& context, const model::SpikeConfig& spikes, int64_t layers)
      : context_(context), spikes_(spikes), sites_(static_cast<size_t>(layers)) {}

  struct Sum {
    std::vector<double> squares;
    int64_t rows = 0;
  };

  const Sum& at(int64_t layer, size_t site) const {
    return sites_[static_cast<size_t>(layer)][site];
  }

  void on_activations(int64_t layer, model::Site site, ConstTensorView x) override {
    const double k = spikes_.at(layer, site);
    if (k == 0) return;
    Sum& sum = sites_[static_cast<size_t>(layer)][static_cast<size_t>(site)];
    const auto channels = static_cast<size_t>(x.shape().last());
    const Arena::Scope scope(context_.arena());
    x = fired(x, k);
    sum.squares.resize(channels);
    for (int64_t row = 0; row < x.shape()[0]; ++row) {
      const float* values = x.row_as<float>(row);
      for (size_t c = 0; c < channels; ++c) {
        sum.squares[c] += static_cast<double>(values[c]) * values[c];
      }
    }
    sum.rows += x.shape()[0];
  }
  void on_spikes(int64_t, model::Site, const spike::SpikeCounts&) override {}

 private:
  ConstTensorView fired(ConstTensorView x, double k) {
    Arena& arena = context_.arena();
    spike::SpikeCounts counts;
    counts.core = arena.tensor(DType::kI8, x.shape());
    counts.thresholds = arena.tensor(Shape{x.shape()[0]});
    const TensorView values = arena.tensor(x.shape());
    spike::spike_threshold(context_, {x, {.k = k}, &counts});
    spike::spike_values(context_, counts, values);
    return values;
  }

  Context& context_;
  const model::SpikeConfig& spikes_;
  std::vector<std::array<Sum, model::kSites>> sites_;
};

void run_text(Context& context, const model::Model& model, std::span<const int32_t> tokens,
              EnergySums& sums) {
  constexpr int64_t kChunk = 512;
  const auto total = static_cast<int64_t>(tokens.size());
  check(total > 0, "calibration: expected texts with at least one token");
  model::SequenceState state(model, {total, kChunk, DType::kF32});
  const model::ForwardHooks hooks{&sums};
  for (int64_t first = 0; first < total; first += kChunk) {
    const auto count = static_cast<size_t>(std::min(kChunk, total - first));
    const model::SequenceSlice slice{tokens.subspan(static_cast<size_t>(first), count), &state,
                                     model::Logits::kAll};
    model::forward(context, model, {&slice, 1}, {}, hooks);
  }
}

}  // namespace

ConstTensorView Importance::at(int64_t layer, model::Site site) const {
  if (means_.empty()) return {};
  const Tensor& mean = means_[static_cast<size_t>(layer)][static_cast<size_t>(site)];
  return mean.defined() ? ConstTensorView(mean) : ConstTensorView();
}

Importance calibrate(Context& context, const model::Model& model, const model::SpikeConfig& spikes,
                     std::span<const std::vector<int32_t>> texts,
                     const ProgressFunction& progress) {
  const int64_t layers = model.config().num_layers();
  EnergySums sums(context, spikes, layers);
  for (size_t i = 0; i < texts.size(); ++i) {
    run_text(context, model, texts[i], sums);
    if (progress) progress(static_cast<int64_t>(i + 1), static_cast<int64_t>(texts.size()));
  }
  Importance importance;
  importance.means_.resize(static_cast<size_t>(layers));
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (size_t site = 0; site < model::kSites; ++site) {
      const auto& [squares, rows] = sums.at(layer, site);
      if (rows == 0) continue;
      Tensor mean(DType::kF32, Shape{static_cast<int64_t>(squares.size())});
      for (size_t c = 0; c < squares.size(); ++c) {
        mean.as<float>()[c] = static_cast<float>(squares[c] / static_cast<double>(rows));
      }
      importance.means_[static_cast<size_t>(layer)][site] = std::move(mean);
    }
  }
  return importance;
}

}  // namespace spb::convert
