// Tensors of a Hugging Face folder: safetensors or PyTorch zip checkpoints, one file or sharded.
//
// Looks in this order: model.safetensors.index.json, model.safetensors,
// pytorch_model.bin.index.json, pytorch_model.bin, and otherwise the only *.safetensors or *.bin.
#pragma once

#include <memory>
#include <string>

#include "io/tensor_source.h"

namespace spb::io {

std::unique_ptr<TensorSource> open_safetensors(const std::string& path);
// A PyTorch zip checkpoint: a zip of stored (not compressed) records whose pickle is interpreted by
// an allow-list of opcodes and globals. Nothing in it is ever executed.
std::unique_ptr<TensorSource> open_torch_zip(const std::string& path);
std::unique_ptr<TensorSource> open_checkpoint_folder(const std::string& folder);

}  // namespace spb::io
