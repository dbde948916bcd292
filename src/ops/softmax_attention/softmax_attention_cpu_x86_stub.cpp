// Stands in for softmax_attention_cpu_amx.cpp on other processors.
#include "ops/softmax_attention/softmax_attention_tiles.h"

namespace spb::ops {

const SoftmaxAttentionTiles* softmax_attention_tiles() { return nullptr; }

}  // namespace spb::ops
