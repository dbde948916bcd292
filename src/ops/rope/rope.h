// rope: rotary position embedding, in place.
//
// For the pair j in [0, D/2) of every head, at position p = positions[i]:
//   angle = p * theta^(-2j/D) / factors[j]          (factors[j] = 1 when absent)
//   (a, b) <- (a cos(angle) - b sin(angle), a sin(angle) + b cos(angle))
// The pair is (x[j], x[j + D/2]) in the half convention of Hugging Face checkpoints, and
// (x[2j], x[2j + 1]) in the interleaved convention of llama-architecture GGUF files.
//
//   name       shape      dtype  access
//   x          [N, H, D]  f32    rotated in place; D even
//   also       [N, I, D]  f32    rotated in place by the same angles; optional (keys)
//   positions  [N]        i64    read; in [0, 2^40]
//   factors    [D/2]      f32    read; optional, each > 0 (Llama 3 long-context scaling)
//
// On a CUDA device x and also may be bf16. Angles are computed in double and reduced before sin and
// cos, so positions of many millions keep full accuracy. Tolerance against the reference:
// 1e-6 * |(a, b)| up to position 2^24. The same bits for every number of threads.
// Source: Su et al. 2021, "RoFormer".
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::ops {

enum class RopePairs { kHalf, kInterleaved };

struct RopeArgs {
  TensorView x;
  std::span<const int64_t> positions;
  ConstTensorView factors;  // may be undefined
  double theta = 10000.0;
  RopePairs pairs = RopePairs::kHalf;
  TensorView also = {};  // may be undefined
};

void rope(Context& context, const RopeArgs& args);
void rope_reference(const RopeArgs& args);

// The factors of Llama 3.1 and later ("rope_type": "llama3"): wavelengths longer than
// original_context / low_frequency_factor are stretched by `factor`, those shorter than
// original_context / high_frequency_factor kept, those between blended. Returns D/2 values.
struct Llama3Scaling {
  double factor = 8.0;
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;
  double original_context = 8192.0;

  bool operator==(const Llama3Scaling&) const = default;
};
std::vector<float> llama3_rope_factors(const Llama3Scaling& scaling, double theta,
                                       int64_t head_dim);

}  // namespace spb::ops
