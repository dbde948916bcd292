// Spike counts as kernels see them.
#pragma once

#include "core/cuda/launch.cuh"
#include "ops/swiglu/swiglu.cuh"
#include "spike/threshold/threshold.h"

namespace spb::spike {

// Channels that share a scale of weights, and a flag that says whether one of them bursts.
inline constexpr int kFlagGroup = 128;

// round_half_even(x / threshold), the operations of threshold.h.
__device__ inline float rounded_count(float x, float threshold) {
  return rintf(__fdiv_rn(x, threshold));
}

struct DeviceCounts {
  const signed char* core;  // [rows, channels], rows `core_stride` apart
  int64_t core_stride;
  const std::byte* drives;  // f32 or bf16
  int64_t drive_stride;     // bytes
  const std::byte* ups;     // or nullptr
  int64_t up_stride;
  bool bf16_drives;
  const float* thresholds;
  const signed char* burst_groups;  // [rows, groups]
  int64_t rows;
  int channels;
  int groups;

  template <typename T>
  __device__ float drive_of(int64_t row, int channel) const {
    const T x = reinterpret_cast<const T*>(drives + row * drive_stride)[channel];
    if (ups == nullptr) return cuda::to_float(x);
    return cuda::to_float(
        ops::gated(x, reinterpret_cast<const T*>(ups + row * up_stride)[channel]));
  }
  __device__ float drive(int64_t row, int channel) const {
    return bf16_drives ? drive_of<__nv_bfloat16>(row, channel) : drive_of<float>(row, channel);
  }
  // Of a count that the core clamps or may have clamped, else 0.
  __device__ int excess(int64_t row, int channel, int core_count) const {
    if (abs(core_count) < kCoreLimit) return 0;
    return static_cast<int>(rounded_count(drive(row, channel), thresholds[row])) - core_count;
  }
  __device__ int core_count(int64_t row, int channel) const {
    return core[row * core_stride + channel];
  }
  __device__ int count(int64_t row, int channel) const {
    const int at = core_count(row, channel);
    return at + excess(row, channel, at);
  }
  __device__ bool bursts(int64_t row, int group) const {
    return burst_groups[row * groups + group] != 0;
  }
};

// Usage error for counts that do not say what they were made of.
inline DeviceCounts device_counts(const char* operation, const SpikeCounts& counts) {
  const Shape& shape = counts.core.shape();
  const auto groups = static_cast<int>(cuda::ceil_divide(shape[1], kFlagGroup));
  check(counts.drives.defined() && counts.drives.shape() == shape &&
            counts.burst_groups.defined() &&
            counts.burst_groups.shape() == Shape{shape[0], groups} && counts.bursts.empty(),
        "{}: counts: expected those of spike_threshold on a CUDA device, with their drives",
        operation);
  return {.core = counts.core.as<const int8_t>(),
          .core_stride = counts.core.row_stride_bytes(),
          .drives = counts.drives.data(),
          .drive_stride = counts.drives.row_stride_bytes(),
          .ups = counts.ups.defined() ? counts.ups.data() : nullptr,
          .up_stride = counts.ups.defined() ? counts.ups.row_stride_bytes() : 0,
          .bf16_drives = counts.drives.dtype() == DType::kBF16,
          .thresholds = counts.thresholds.as<const float>(),
          .burst_groups = counts.burst_groups.as<const int8_t>(),
          .rows = shape[0],
          .channels = static_cast<int>(shape[1]),
          .groups = groups};
}

}  // namespace spb::spike
