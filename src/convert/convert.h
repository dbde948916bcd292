// convert: a Hugging Face checkpoint written as one GGUF file of our own architecture.
//
// Every tensor is checked against the config before the first byte is written, converted one at a
// time (a model larger than memory is fine), and the file appears under its name only when
// complete.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "core/context.h"
#include "io/gguf.h"
#include "model/weights.h"

namespace spb::convert {

using ProgressFunction = std::function<void(int64_t done, int64_t total)>;

struct ConvertSettings {
  DType format = DType::kBF16;                           // of matrices
  std::optional<DType> embedding_format = std::nullopt;  // default: at least q8_0
  bool overwrite = false;
};

struct ConvertResult {
  model::ModelConfig config;
  int64_t bytes = 0;  // of the file
};

// Reads model types gla_swa, qwen2 and llama. A matrix whose rows do not divide into the blocks of
// the format is written in f16 instead. Usage error when `output` exists and overwrite is off.
ConvertResult convert_folder(Context& context, const std::string& folder, const std::string& output,
                             const ConvertSettings& settings,
                             const ProgressFunction& progress = {});

// The dtype a tensor is written in: vectors f32, the low-rank gate f16 or better, matrices `format`
// or f16 when their rows do not divide.
DType storage_dtype(const model::TensorSlot& slot, DType format, DType embedding_format);
DType default_embedding_format(DType format);

}  // namespace spb::convert
