// open_model: what a model file or folder says, before any weight is prepared.
#pragma once

#include <memory>
#include <string>

#include "io/gguf.h"
#include "io/tensor_source.h"
#include "model/config.h"
#include "model/weights.h"

namespace spb::model {

struct OpenModel {
  ModelConfig config;
  Naming naming = Naming::kGguf;
  std::shared_ptr<const io::TensorSource> source;
  const io::GgufMetadata* metadata = nullptr;  // of the source; nullptr for a folder
};

// A GGUF file, or a folder with config.json and safetensors or PyTorch files. Data or system error
// naming the file and the key that is missing, contradictory or unsupported.
OpenModel open_model(const std::string& path);

// The weights of a config found in a source under the given naming, every shape and dtype checked.
// Data error naming the file and the tensor.
ModelWeights bind_weights(const ModelConfig& config, const io::TensorSource& source, Naming naming);

}  // namespace spb::model
