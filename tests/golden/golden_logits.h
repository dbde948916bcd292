// Running golden models and comparing their logits with the stored ones.
#pragma once

#include <vector>

#include "golden/golden_recipe.h"
#include "model/forward.h"

namespace spb::golden {

// Logits of every position when the first `prompt` tokens come in chunks and the rest one by one.
Tensor all_logits(Context& context, const model::Model& model, std::span<const int32_t> tokens,
                  model::SequenceState& state, int64_t prompt,
                  const std::vector<int64_t>& chunk_sizes, const model::ForwardHooks& hooks = {});

// The largest difference at the stored positions that lie in [begin, logits' rows), relative to the
// largest stored |logit|. NaN when any logit is.
double difference(const Expected& expected, const Tensor& logits, int64_t begin = 0);

}  // namespace spb::golden
