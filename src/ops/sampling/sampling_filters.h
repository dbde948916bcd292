// Candidates of one draw and the filters that shorten their list. Better means: higher logit, then
// lower id. Lists stay in the order of ids; nothing here sorts a whole vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "core/rng.h"

namespace spb::ops {

struct SamplingCandidate {
  int32_t id;
  float logit;
  double weight;  // its probability up to a common factor
};

// Keeps the `count` best.
void keep_best_count(std::vector<SamplingCandidate>& candidates, int64_t count);

// Keeps the fewest best whose weights sum up to at least `share` of all weights.
void keep_best_share(std::vector<SamplingCandidate>& candidates, double share);

// Draws by weight. The list must not be empty.
int32_t draw(const std::vector<SamplingCandidate>& candidates, Rng& rng);

}  // namespace spb::ops
