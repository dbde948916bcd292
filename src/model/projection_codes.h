// ProjectionCodes: the integer codes of a projection, from any form a file has them in.
#pragma once

#include "core/context.h"
#include "model/weights.h"
#include "spike/weights/weight_codes.h"

namespace spb::model {

class ProjectionCodes {
 public:
  // i8 weights are codes already and stay where they are. Floats with scales are rounded, their
  // quotients in bf16 where both are bf16; floats without get scales of their own, searched for
  // with the importance of the input channels (spike/weights/weight_codes.h).
  // Data error for scales that are not finite or not above 0, for a residual out of order, outside
  // the matrix or beyond spike::kMaxCode, and for weights that are not finite.
  ProjectionCodes(Context& context, const LinearWeights& weights, ConstTensorView importance = {});

  spike::SpikeWeightSource source() const;
  // code * scale: f32, or bf16 where the weights are bf16 floats.
  Tensor values(Context& context) const;

 private:
  DType value_dtype_ = DType::kF32;
  ConstTensorView stored_codes_;  // of the file; undefined when rounded here
  std::vector<spike::CodeExcess> stored_residual_;
  spike::WeightCodes codes_;
};

}  // namespace spb::model
