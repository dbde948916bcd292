// ModelConfig from and to the metadata of a GGUF file.
//
// Reads general.architecture = spikingbrain (ours, see docs/formats.md), llama and qwen2; anything
// else is a data error that names it. Writes ours, or llama and qwen2 for models whose every layer
// is full attention.
#pragma once

#include "io/gguf.h"
#include "model/config.h"

namespace spb::model {

ModelConfig config_from_gguf(const io::GgufFile& file);

// Adds the keys of `config` under `architecture` ("spikingbrain", "llama" or "qwen2").
// Usage error when that architecture cannot express the config.
void config_to_gguf(const ModelConfig& config, std::string_view architecture,
                    io::GgufMetadata& metadata);

}  // namespace spb::model
