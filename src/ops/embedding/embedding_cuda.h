// The CUDA path of embedding; a stub stands in where CUDA is not built.
#pragma once

#include "ops/embedding/embedding.h"

namespace spb::ops {

void embedding_cuda(Context& context, const EmbeddingArgs& args);

}  // namespace spb::ops
