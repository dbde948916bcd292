// The inside of weight_codes: the error that a scale causes, one kernel per instruction set.
#pragma once

#include <cstdint>

namespace spb::spike {

inline constexpr int32_t kLargestCode = 127;  // of the codes that we choose

// One group, filled up with zeros to 128 columns.
struct ScaleTrial {
  const float* w;
  const float* importance;
  float scale;
};

namespace isa_portable {
float scale_error(const ScaleTrial& trial);
}
namespace isa_avx2 {
float scale_error(const ScaleTrial& trial);
}
namespace isa_avx512 {
float scale_error(const ScaleTrial& trial);
}

}  // namespace spb::spike
