// What the CUDA kernels of softmax_attention see of a call: keys in the order of visiting, first
// the sinks, then positions.
#pragma once

#include "core/cuda/pack.cuh"
#include "ops/softmax_attention/softmax_attention.h"

namespace spb::ops {

// Keys and values of one source. Heads of `capacity` rows of head_dim; row r of head h has the
// scale [h * capacity + r] with i8, none otherwise.
struct KeyRows {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
  int64_t capacity = 0;
};

struct VisibleKeys {
  KeyRows sinks;  // capacity 0: none
  KeyRows ring;   // capacity 0: none
  int64_t first_position;
  int64_t window;  // positions a query sees; the largest number when there is no window

  // First position that query i sees, and the one after the last.
  __device__ int64_t begin(int64_t i) const {
    const int64_t position = first_position + i;
    return position >= window ? position - window + 1 : 0;
  }
  __device__ int64_t end(int64_t i) const {
    return ring.capacity == 0 ? 0 : first_position + i + 1;
  }
};

inline KeyRows key_rows(ConstTensorView keys, ConstTensorView values, ConstTensorView key_scales,
                        ConstTensorView value_scales) {
  if (!keys.defined()) return {};
  const auto scales = [](const ConstTensorView& tensor) {
    return tensor.defined() ? tensor.as<float>() : nullptr;
  };
  return {keys.data(), values.data(), scales(key_scales), scales(value_scales), keys.shape()[1]};
}

inline VisibleKeys visible_keys(const SoftmaxAttentionArgs& args) {
  constexpr int64_t kEverything = int64_t{1} << 62;
  return {key_rows(args.sink_keys, args.sink_values, args.sink_key_scales, args.sink_value_scales),
          key_rows(args.keys, args.values, args.key_scales, args.value_scales), args.first_position,
          args.window_size > 0 ? args.window_size : kEverything};
}

// Prefill on tensor cores: q, o and caches bf16, head_dim 64 or 128.
bool prefill_tiles_fit(const SoftmaxAttentionArgs& args);
void softmax_attention_prefill_tiles(Context& context, const SoftmaxAttentionArgs& args);

}  // namespace spb::ops
