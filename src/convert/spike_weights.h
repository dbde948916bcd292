// SpikeWeights: a model's projections as integer codes, on their way into a file.
//
// Where the source has scales (a published W8ASpike checkpoint, or a spiking file of ours) they are
// kept, and codes beyond 8 bits become a residual. Otherwise scales are searched for the least
// error of the outputs, given how much every input channel carries. A low-rank gate becomes one
// matrix, the product of its two.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "convert/calibration.h"
#include "io/gguf.h"
#include "model/projection_codes.h"

namespace spb::convert {

class SpikeWeights {
 public:
  // `weights` and `importance` must live until the file is written.
  SpikeWeights(Context& context, const model::ModelConfig& source,
               const model::ModelWeights& weights, const model::SpikeConfig& spikes,
               const Importance& importance);

  const model::ModelConfig& config() const { return config_; }
  model::ModelWeights& weights() { return weights_; }

  // Plans for a slot of use kCodes, kScales or kResidual; none for what does not exist.
  void add(const model::TensorSlot& slot, std::vector<io::GgufTensorPlan>& plans);

  std::vector<CodeReport> reports() const { return {reports_.begin(), reports_.end()}; }

 private:
  struct Matrix;
  using FillFunction =
      std::function<void(const spike::SpikeWeightSource& made, std::span<std::byte> out)>;

  // A tensor of the current matrix.
  void plan(io::GgufTensorPlan tensor, std::vector<io::GgufTensorPlan>& plans,
            const FillFunction& fill);
  void merge_gates(const model::ModelConfig& source);
  ConstTensorView importance_of(const model::TensorSlot& slot) const;

  Context& context_;
  model::ModelConfig config_;
  model::ModelWeights weights_;
  const Importance& importance_;
  std::deque<Tensor> merged_;
  std::shared_ptr<Matrix> current_;  // the matrix whose slots are being visited
  std::deque<CodeReport> reports_;
};

}  // namespace spb::convert
