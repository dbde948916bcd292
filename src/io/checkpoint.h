// Tensors of a Hugging Face folder: safetensors or PyTorch zip checkpoints, one file or sharded.
//
// Looks in this order: model.safetensors.index.json, model.safetensors,
// pytorch_model.bin.index.json, pytorch_model.bin, and otherwise the only *.safetensors or *.bin.
// Limits and what is refused: docs/formats.md.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "io/tensor_source.h"

namespace spb::io {

// All of these throw a data or system error that names the file, and where there is one the tensor
// and the byte.
std::unique_ptr<TensorSource> open_safetensors(const std::string& path);
// A PyTorch zip checkpoint: a zip of stored (not compressed) records whose pickle is interpreted by
// an allow-list of opcodes and globals. Nothing in it is ever executed.
std::unique_ptr<TensorSource> open_torch_zip(const std::string& path);
std::unique_ptr<TensorSource> open_checkpoint_folder(const std::string& folder);

// The same from bytes in memory, which are copied; `name` stands for the path in messages.
std::unique_ptr<TensorSource> open_safetensors_bytes(std::span<const std::byte> bytes,
                                                     std::string name);
std::unique_ptr<TensorSource> open_torch_zip_bytes(std::span<const std::byte> bytes,
                                                   std::string name);

// Writes names and views (contiguous, plain dtypes; else a usage error); TensorEntry::file is not
// used. The file appears complete or not at all.
void write_safetensors(const std::string& path, std::span<const TensorEntry> tensors);

}  // namespace spb::io
