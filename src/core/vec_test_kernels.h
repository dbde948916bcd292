// The functions of simd/vec.h behind plain pointers, one table per instruction set, for its test.
#pragma once

#include <cstdint>

#include "core/half.h"

namespace spb {

struct VecProbe {
  int lanes;
  void (*exp)(const float* x, float* y, int64_t count);  // count: a multiple of lanes
  void (*to_f16)(const float* x, f16* y, int64_t count);
  void (*to_bf16)(const float* x, bf16* y, int64_t count);
  void (*from_f16)(const f16* x, float* y, int64_t count);
  void (*from_bf16)(const bf16* x, float* y, int64_t count);
  float (*reduce_add)(const float* x);
  float (*reduce_max)(const float* x);
  void (*fma_min_max)(const float* abc, float* out);  // three registers in, three out
  void (*partial_f32)(const float* x, int count, float fill, float* all, float* y);
  void (*partial_f16)(const f16* x, int count, float fill, float* all, f16* y);
  void (*partial_bf16)(const bf16* x, int count, float fill, float* all, bf16* y);
};

namespace isa_portable {
VecProbe vec_probe();
}
namespace isa_avx2 {
VecProbe vec_probe();
}
namespace isa_avx512 {
VecProbe vec_probe();
}

}  // namespace spb
