#include "convert/calibration.h"

#include <algorithm>

#include "core/error.h"
#include "model/forward.h"

namespace spb::convert {
namespace {

// Sums x^2 by channel, in double: texts are long.
class EnergySums : public model::ActivityObserver {
 public:
  explicit EnergySums(int64_t layers) : sites_(static_cast<size_t>(layers)) {}

  struct Sum {
    std::vector<double> squares;
    int64_t rows = 0;
  };

  const Sum& at(int64_t layer, size_t site) const {
    return sites_[static_cast<size_t>(layer)][site];
  }

  void on_activations(int64_t layer, model::Site site, ConstTensorView x) override {
    Sum& sum = sites_[static_cast<size_t>(layer)][static_cast<size_t>(site)];
    const auto channels = static_cast<size_t>(x.shape().last());
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
  std::vector<std::array<Sum, model::kSites>> sites_;
};

void run_text(Context& context, const model::Model& model, std::span<const int32_t> tokens,
              EnergySums& sums) {
  constexpr int64_t kChunk = 512;
  const auto total = static_cast<int64_t>(tokens.size());
  check(total > 0, "calibration: expected texts with at least one token");
  model::SequenceState state(model, {total, kChunk, DType::kF32});
  const model::ForwardHooks hooks{&sums, false};
  for (int64_t first = 0; first < total; first += kChunk) {
    const auto count = static_cast<size_t>(std::min(kChunk, total - first));
    Tensor logits(DType::kF32, Shape{static_cast<int64_t>(count), model.config().vocab_size});
    const model::SequenceSlice slice{tokens.subspan(static_cast<size_t>(first), count), &state,
                                     model::Logits::kAll};
    model::forward(context, model, {&slice, 1}, logits, hooks);
  }
}

}  // namespace

ConstTensorView Importance::at(int64_t layer, model::Site site) const {
  if (means_.empty()) return {};
  const Tensor& mean = means_[static_cast<size_t>(layer)][static_cast<size_t>(site)];
  return mean.defined() ? ConstTensorView(mean) : ConstTensorView();
}

Importance calibrate(Context& context, const model::Model& model,
                     std::span<const std::vector<int32_t>> texts,
                     const ProgressFunction& progress) {
  const int64_t layers = model.config().num_layers();
  EnergySums sums(layers);
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
