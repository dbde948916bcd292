// The shapes of SpikingBrain-7B that the benches of the operators take. Not part of the library.
#pragma once

#include "ops/cuda_bench.h"

namespace spb::ops {

inline constexpr int64_t kHidden = 3584;
inline constexpr int64_t kFeedForward = 18944;
inline constexpr int64_t kHeads = 28;
inline constexpr int64_t kKvHeads = 4;
inline constexpr int64_t kGroup = kHeads / kKvHeads;
inline constexpr int64_t kDim = 128;
inline constexpr int64_t kWindow = 4096;
inline constexpr int64_t kVocab = 152064;
inline constexpr int64_t kVerifiedHead = kKvHeads - 1;  // and the query heads that read it
inline constexpr float kScale = 0.0884f;
inline constexpr int kSets = CudaBench::kSets;
inline constexpr DType kActivations = DType::kBF16;
inline constexpr double kRounding = 4e-3;  // of a result that is rounded to bf16 once

}  // namespace spb::ops
