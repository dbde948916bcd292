// The inside of embedding: the CPU path. Arguments have been checked.
#pragma once

#include "ops/embedding/embedding.h"

namespace spb::ops {

void embedding_cpu(Context& context, const EmbeddingArgs& args);

}  // namespace spb::ops
