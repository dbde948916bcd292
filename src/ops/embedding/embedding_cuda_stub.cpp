#include "core/cuda/not_built.h"
#include "ops/embedding/embedding_cuda.h"

namespace spb::ops {

void embedding_cuda(Context&, const EmbeddingArgs&) { cuda::not_built("embedding"); }

}  // namespace spb::ops
