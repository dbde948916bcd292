// convert: a model written as one GGUF file of our own architecture, in other weight formats or
// upcycled to a mixture of experts.
//
// Every tensor is checked against the config before the first byte is written, converted one at a
// time (a model larger than memory is fine), and the file appears under its name only when
// complete.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "convert/upcycle.h"
#include "core/context.h"
#include "io/gguf.h"
#include "model/weights.h"

namespace spb::convert {

using ProgressFunction = std::function<void(int64_t done, int64_t total)>;

struct SpikeSettings {
  double k = 3.0;
  std::vector<std::vector<int32_t>> texts;  // tokens to calibrate on; none: all channels alike
  // Instead of k at these places; where it is 0, weights stay as matrices without spikes are.
  std::vector<model::SiteRule> site_k = {};
};

struct ConvertSettings {
  std::optional<DType> format = std::nullopt;            // of matrices; default: as they are
  std::optional<DType> embedding_format = std::nullopt;  // default: at least q8_0
  std::optional<UpcycleSettings> upcycle = std::nullopt;
  std::optional<SpikeSettings> spikes = std::nullopt;  // write a W8ASpike model
  ProgressFunction calibration_progress = {};          // counts texts
  bool overwrite = false;
};

// What became of the codes of one matrix of a spiking model.
struct CodeReport {
  std::string tensor;
  int64_t codes = 0;
  int64_t beyond = 0;  // outside 8 bits: in the residual
};

struct ConvertResult {
  model::ModelConfig config;
  int64_t bytes = 0;  // of the file
  std::vector<CodeReport> codes;
};

// Spiking models stay spiking.
// `source` is a GGUF file or a Hugging Face folder (model types gla_swa, qwen2 and llama). A matrix
// whose rows do not divide into the blocks of the format is written in f16 instead. Usage error
// when `output` exists and overwrite is off, or the source has a format that cannot be written and
// none is given.
ConvertResult convert_model(Context& context, const std::string& source, const std::string& output,
                            const ConvertSettings& settings, const ProgressFunction& progress = {});

// The dtype a tensor is written in: vectors f32, the low-rank gate f16 or better, matrices `format`
// or f16 when their rows do not divide.
DType storage_dtype(const model::TensorSlot& slot, DType format, DType embedding_format);
DType default_embedding_format(DType format);

}  // namespace spb::convert
