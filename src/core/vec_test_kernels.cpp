#include "core/vec_test_kernels.h"

#include "core/simd/vec.h"

namespace spb::SPB_ISA {
namespace {

void exp_all(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(y + i, exp(load(x + i)));
}

template <typename From, typename To>
void convert(const From* x, To* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(y + i, load(x + i));
}

float add(const float* x) { return reduce_add(load(x)); }
float largest(const float* x) { return reduce_max(load(x)); }

void fma_min_max(const float* abc, float* out) {
  const Vec a = load(abc), b = load(abc + kLanes), c = load(abc + 2 * kLanes);
  store(out, fma(a, b, c));
  store(out + kLanes, min(a, b));
  store(out + 2 * kLanes, max(a, b));
}

// What was loaded goes to `all`; its first `count` elements to y.
template <typename T>
void partial(const T* x, int count, float fill, float* all, T* y) {
  const Vec v = load_partial(x, count, fill);
  store(all, v);
  store_partial(y, v, count);
}

}  // namespace

VecProbe vec_probe() {
  return {.lanes = kLanes,
          .exp = exp_all,
          .to_f16 = convert<float, f16>,
          .to_bf16 = convert<float, bf16>,
          .from_f16 = convert<f16, float>,
          .from_bf16 = convert<bf16, float>,
          .reduce_add = add,
          .reduce_max = largest,
          .fma_min_max = fma_min_max,
          .partial_f32 = partial<float>,
          .partial_f16 = partial<f16>,
          .partial_bf16 = partial<bf16>};
}

}  // namespace spb::SPB_ISA
