// ModelConfig from the config.json of a Hugging Face folder.
//
// Model types: gla_swa (SpikingBrain-7B), qwen2, llama. What the forward pass does not do (short
// convolutions, other activations, unknown RoPE scaling, quantised checkpoints) is a data error
// that names the key.
#pragma once

#include <string>

#include "io/tensor_source.h"
#include "model/config.h"
#include "model/weights.h"

namespace spb::model {

struct HuggingFaceConfig {
  ModelConfig config;
  Naming naming = Naming::kHuggingFace;
};

// `source` tells what the JSON may leave open: whether the head is tied and biases exist.
HuggingFaceConfig config_from_hugging_face(const std::string& folder,
                                           const io::TensorSource& source);

}  // namespace spb::model
