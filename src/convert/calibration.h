// Calibration: which input channels of every projection carry energy, measured on texts.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "convert/convert.h"
#include "core/buffer.h"
#include "core/context.h"
#include "model/activity.h"
#include "model/model.h"

namespace spb::convert {

// Mean of y^2, where y is the activation that spike counts stand for, for every input channel, by
// layer and site.
class Importance {
 public:
  // [channels] f32; undefined where nothing was measured.
  ConstTensorView at(int64_t layer, model::Site site) const;

 private:
  friend Importance calibrate(Context&, const model::Model&, const model::SpikeConfig&,
                              std::span<const std::vector<int32_t>>, const ProgressFunction&);
  std::vector<std::array<Tensor, model::kSites>> means_;
};

// Runs every text, a sequence of tokens of its own, through the float model; its activations are
// counted at the k of `spikes`, but go on as they are. Usage error for an empty
// text or ids out of range. `progress` counts texts.
Importance calibrate(Context& context, const model::Model& model, const model::SpikeConfig& spikes,
                     std::span<const std::vector<int32_t>> texts,
                     const ProgressFunction& progress = {});

}  // namespace spb::convert
