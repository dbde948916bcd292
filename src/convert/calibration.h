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

// Mean of x^2 for every input channel, by layer and site.
class Importance {
 public:
  // [channels] f32; undefined where nothing was measured.
  ConstTensorView at(int64_t layer, model::Site site) const;

 private:
  friend Importance calibrate(Context&, const model::Model&, std::span<const std::vector<int32_t>>,
                              const ProgressFunction&);
  std::vector<std::array<Tensor, model::kSites>> means_;
};

// Runs every text, a sequence of tokens of its own, through the model. Usage error for an empty
// text or ids out of range. `progress` counts texts.
Importance calibrate(Context& context, const model::Model& model,
                     std::span<const std::vector<int32_t>> texts,
                     const ProgressFunction& progress = {});

}  // namespace spb::convert
