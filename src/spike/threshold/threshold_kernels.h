// The inside of spike_threshold: the CPU path and its kernels, one per instruction set. Arguments
// have been checked.
#pragma once

#include <cstdint>

#include "spike/threshold/threshold.h"

namespace spb::spike {

// What firing one row found.
struct FiredRow {
  float largest;   // |count|; may exceed kMaxCount
  int32_t active;  // counts that are not 0
  int32_t bursts;  // counts beyond the core
  bool finite;     // every drive is; otherwise the other fields mean nothing
};

// clamp(mean / k), the f32 operations of threshold.h in their order.
float firing_threshold(float sum, int64_t channels, const ThresholdSettings& settings);

// round_half_even(x / threshold) with the dead zone; any value, infinite ones included.
float spike_count(float x, float threshold, float dead_zone);

// The error of the first row that is not finite or counts too far, if there is one.
void check_drives(const ThresholdArgs& args, const FiredRow* rows);

void spike_threshold_cpu(Context& context, const ThresholdArgs& args);

// Of each instruction set: the canonical sum; the core of a row and what firing it found, `finite`
// excepted; the channels of its `active` counts that are not 0.
namespace isa_portable {
float absolute_sum(const float* x, int64_t channels);
void fire_row(const float* x, int64_t channels, float threshold, float dead_zone, int8_t* core,
              FiredRow* fired);
void list_active(const int8_t* core, int64_t channels, int32_t active, int32_t* list);
}  // namespace isa_portable
namespace isa_avx2 {
float absolute_sum(const float* x, int64_t channels);
void fire_row(const float* x, int64_t channels, float threshold, float dead_zone, int8_t* core,
              FiredRow* fired);
void list_active(const int8_t* core, int64_t channels, int32_t active, int32_t* list);
}  // namespace isa_avx2
namespace isa_avx512 {
float absolute_sum(const float* x, int64_t channels);
void fire_row(const float* x, int64_t channels, float threshold, float dead_zone, int8_t* core,
              FiredRow* fired);
void list_active(const int8_t* core, int64_t channels, int32_t active, int32_t* list);
}  // namespace isa_avx512

}  // namespace spb::spike
