// A model without a file: random weights of a config, for benchmarks of shapes nobody has a file
// of, or whose file would not fit on the disk.
#pragma once

#include <memory>

#include "model/model.h"

namespace spb::model {

// Matrices are normal with deviation 0.02 in `format`, cut from one block of random numbers that
// repeats; where inputs are spikes they are codes of such numbers, all with one scale. Norms are 1,
// biases 0. Usage error for a format that cannot be written.
std::unique_ptr<Model> random_model(Context& context, ModelConfig config, DType format,
                                    uint64_t seed, const LoadOptions& options = {});

}  // namespace spb::model
