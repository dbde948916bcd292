#include "core/simd/vec.h"
#include "ops/sampling/sampling_kernels.h"

namespace spb::ops::SPB_ISA {
using namespace spb::SPB_ISA;
namespace {

constexpr int kWide = kLanes / 2;  // lanes of double
constexpr float kLargest = 3.402823466e38f;
constexpr float kImpossible = -__builtin_inff();

typedef double VecD __attribute__((vector_size(kWide * 8)));
typedef int64_t VecL __attribute__((vector_size(kWide * 8)));
typedef float HalfVec __attribute__((vector_size(kWide * 4)));

VecD load_wide(const float* p) {
  HalfVec v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, VecD);
}

void store_wide(double* p, VecD v) { __builtin_memcpy(p, &v, sizeof v); }

// e^x for x <= 0 by reduction to |r| <= ln(2) / 2 and the Taylor series, exact to 1e-16 there.
VecD exp_wide(VecD x) {
  constexpr double kLowest = -708.0;  // 2^n stays a normal number
  const VecD lowest = VecD{} + kLowest;
  const VecD clamped = x < lowest ? lowest : x;
  constexpr double kShifter = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const VecD biased = clamped * 1.4426950408889634 + kShifter;
  const VecD n = biased - kShifter;
  // ln 2 in two parts: the product of n with the first is exact.
  const VecD r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  VecD p = VecD{} + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const VecL power = (((VecL)biased - (VecL)(VecD{} + kShifter)) + 1023) << 52;
  const VecD result = p * (VecD)power;
  return x < lowest ? VecD{} : result;
}

template <bool kStore>
double sum_of_weights(const float* logits, int64_t count, double highest, double scale,
                      double* weights) {
  VecD sum{};
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) {
    const VecD weight = exp_wide((load_wide(logits + i) - highest) * scale);
    if constexpr (kStore) store_wide(weights + i, weight);
    sum += weight;
  }
  if (i < count) {
    float padded[kWide];
    double tail[kWide];
    for (int j = 0; j < kWide; ++j) padded[j] = i + j < count ? logits[i + j] : kImpossible;
    const VecD weight = exp_wide((load_wide(padded) - highest) * scale);
    store_wide(tail, weight);
    if constexpr (kStore) {
      for (int64_t j = i; j < count; ++j) weights[j] = tail[j - i];
    }
    sum += weight;
  }
  double total = 0;
  for (int j = 0; j < kWide; ++j) total += sum[j];
  return total;
}

}  // namespace

double exp_weights(const float* logits, int64_t count, double highest, double scale,
                   double* weights) {
  return weights != nullptr ? sum_of_weights<true>(logits, count, highest, scale, weights)
                            : sum_of_weights<false>(logits, count, highest, scale, nullptr);
}

bool block_maxima(const float* logits, int64_t count, float* maxima) {
  const Vec largest = broadcast(kLargest);
  VecI valid = lane_index() >= 0;
  for (int64_t i = 0; i < count; i += kLogitBlock) {
    const int64_t end = i + kLogitBlock < count ? i + kLogitBlock : count;
    Vec best = broadcast(kImpossible);
    for (int64_t j = i; j < end; j += kLanes) {
      const Vec v = end - j >= kLanes
                        ? load(logits + j)
                        : load_partial(logits + j, static_cast<int>(end - j), kImpossible);
      valid &= v <= largest;
      best = max(best, v);
    }
    *maxima++ = reduce_max(best);
  }
  for (int j = 0; j < kLanes; ++j) {
    if (valid[j] == 0) return false;
  }
  return true;
}

}  // namespace spb::ops::SPB_ISA
