#include "core/simd/vec.h"
#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::SPB_ISA {
namespace {

template <typename Function>
void map(float* x, int64_t count, Function function) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, function(load(x + i)));
  if (i == count) return;
  const int rest = static_cast<int>(count - i);
  store_partial(x + i, function(load_partial(x + i, rest)), rest);
}

void rectify(float* x, int64_t count) {
  map(x, count, [](Vec v) { return v < Vec{} ? Vec{} : v; });
}

// log(1 + u) for u in [0, 1], as 2 atanh(u / (2 + u)): the series converges fast, and small u keep
// their relative precision.
Vec log1p(Vec u) {
  const Vec s = u / (u + 2.0f);
  const Vec square = s * s;
  constexpr float kTerms[] = {2.0f / 13, 2.0f / 11, 2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f};
  Vec p = broadcast(2.0f / 15);
  for (const float term : kTerms) p = fma(p, square, broadcast(term));
  return p * s;
}

// exp(-|v|): all that is needed of v, without overflow.
Vec decayed(Vec v) { return exp(v > Vec{} ? -v : v); }

Vec minus_softplus(Vec v, Vec small) { return (v > Vec{} ? -v : Vec{}) - log1p(small); }

// exp(v) / (1 + exp(v)) where v < 0: the relative precision stays.
Vec sigmoid(Vec v, Vec small) { return (v < Vec{} ? small : broadcast(1.0f)) / (small + 1.0f); }

void squash(float* x, int64_t count) {
  map(x, count, [](Vec v) { return sigmoid(v, decayed(v)); });
}

void log_gate(float* z, int64_t count, float factor) {
  map(z, count, [factor](Vec v) { return minus_softplus(-v, decayed(v)) * factor; });
}

void tied_gate(float* k, float* g, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec z = load(k + i);
    const Vec small = decayed(z);
    store(k + i, sigmoid(z, small));
    store(g + i, minus_softplus(z, small));
  }
  if (i == count) return;
  const int rest = static_cast<int>(count - i);
  const Vec z = load_partial(k + i, rest);
  const Vec small = decayed(z);
  store_partial(k + i, sigmoid(z, small), rest);
  store_partial(g + i, minus_softplus(z, small), rest);
}

}  // namespace

extern const ops::GatedInputKernels kGatedInputKernels;
const ops::GatedInputKernels kGatedInputKernels = {rectify, squash, log_gate, tied_gate};

}  // namespace spb::SPB_ISA
