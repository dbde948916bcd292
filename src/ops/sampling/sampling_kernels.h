// The inside of sampling: passes over a whole vocabulary, one variant per instruction set.
#pragma once

#include <cstdint>

namespace spb::ops {

inline constexpr int64_t kLogitBlock = 64;

// block_maxima: the highest logit of every block of kLogitBlock. False if one is NaN or +inf.
// exp_weights: exp((logits[i] - highest) * scale) in double, for highest >= logits[i] and
// scale > 0; -inf gives 0, and so do results below 1e-307. Returns their sum, in a fixed order.
// weights may be null.
namespace isa_portable {
bool block_maxima(const float* logits, int64_t count, float* maxima);
double exp_weights(const float* logits, int64_t count, double highest, double scale,
                   double* weights);
}  // namespace isa_portable
namespace isa_avx2 {
bool block_maxima(const float* logits, int64_t count, float* maxima);
double exp_weights(const float* logits, int64_t count, double highest, double scale,
                   double* weights);
}  // namespace isa_avx2
namespace isa_avx512 {
bool block_maxima(const float* logits, int64_t count, float* maxima);
double exp_weights(const float* logits, int64_t count, double highest, double scale,
                   double* weights);
}  // namespace isa_avx512

}  // namespace spb::ops
