// synthesize: a model file of a given shape with random weights.
//
// Matrices are uniform with variance 1 / columns, norms are ones, gate biases spread the decay over
// channels. A matrix repeats a few distinct rows in random order, which makes a 7B file appear in
// seconds. The same seed gives the same file.
#pragma once

#include <optional>
#include <string>

#include "convert/convert.h"
#include "core/context.h"
#include "model/config.h"

namespace spb::convert {

struct SynthesizeOptions {
  DType format = DType::kQ4_0;
  std::optional<DType> embedding_format = std::nullopt;  // default: at least q8_0
  uint64_t seed = 1;
  std::string architecture = {};  // GGUF architecture; empty: the config's own
};

void synthesize(Context& context, const model::ModelConfig& config,
                const SynthesizeOptions& options, const std::string& output,
                const ProgressFunction& progress = {});

}  // namespace spb::convert
