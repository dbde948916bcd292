// Sink tokens: learned embeddings that every text can attend to.
//
// They pass through the model once, when it is loaded, and leave constants behind: keys and values
// in softmax mixers, an initial state in linear ones. In softmax mixers every sink sees every sink,
// without a mask; their keys are not rotated (position 0). Linear mixers read them in order.
#pragma once

#include <memory>
#include <vector>

#include "model/state.h"

namespace spb::model {

// By dtype of the caches: f32, f16, bf16, i8. Computed in f32, then rounded.
std::vector<std::unique_ptr<SequenceState>> read_sinks(Context& context, const Model& model);

}  // namespace spb::model
