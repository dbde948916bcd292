#include "spike/weights/weight_codes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "core/error.h"
#include "core/isa.h"
#include "core/tensor_check.h"
#include "spike/weights/weight_codes_kernels.h"

namespace spb::spike {
namespace {

constexpr int kTrials = 36;
constexpr float kSmallestScale = std::numeric_limits<float>::min();

int64_t groups_of(const ConstTensorView& w) {
  return (w.shape()[1] + kScaleGroup - 1) / kScaleGroup;
}

void check_weights(const char* operation, const ConstTensorView& w) {
  check(w.defined() && w.shape().rank() == 2 && w.shape()[0] >= 1 && w.shape()[1] >= 1,
        "{}: w: expected a matrix [N, K], got {}", operation,
        w.defined() ? w.shape().to_string() : "nothing");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check(w.shape()[0] <= kMost && w.shape()[1] <= kMaxChannels,
        "{}: w: expected up to {} rows of up to {} columns, got {}", operation, kMost, kMaxChannels,
        w.shape());
  check_tensor(operation, "w", w, DType::kF32, w.shape());
}

WeightCodes allocate_codes(const ConstTensorView& w) {
  return {
      Tensor(DType::kI8, w.shape()), Tensor(DType::kF32, Shape{w.shape()[0], groups_of(w)}), {}};
}

// One group of a row.
struct Group {
  const char* operation;
  int64_t row;
  int64_t first;  // column
  int64_t columns;
  const float* w;
};

template <typename Body>
void for_each_group(Context& context, const char* operation, const ConstTensorView& w, Body body) {
  context.pool().parallel_for(w.shape()[0], 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t g = 0; g < groups_of(w); ++g) {
        const int64_t first = g * kScaleGroup;
        body(Group{operation, n, first, std::min(kScaleGroup, w.shape()[1] - first),
                   w.row_as<float>(n) + first},
             g);
      }
    }
  });
}

float largest_scale(const Group& group) {
  float largest = 0;
  for (int64_t c = 0; c < group.columns; ++c) {
    check_data(std::isfinite(group.w[c]),
               "{}: w: row {}, column {}: expected a finite number, got {}", group.operation,
               group.row, group.first + c, group.w[c]);
    largest = std::max(largest, std::fabs(group.w[c]));
  }
  return largest > 0 ? std::max(largest / static_cast<float>(kLargestCode), kSmallestScale) : 1.0f;
}

void write_limited(const Group& group, float scale, int64_t index, WeightCodes& out) {
  constexpr auto kLimit = static_cast<float>(kLargestCode);
  int8_t* codes = out.codes.view().row_as<int8_t>(group.row) + group.first;
  for (int64_t c = 0; c < group.columns; ++c) {
    codes[c] = static_cast<int8_t>(std::clamp(std::nearbyint(group.w[c] / scale), -kLimit, kLimit));
  }
  out.scales.view().row_as<float>(group.row)[index] = scale;
}

// Of the trials, the scale with the least error.
float best_scale(const Group& group, float largest, const float* importance) {
  const auto error_of =
      select_isa(&isa_portable::scale_error, &isa_avx2::scale_error, &isa_avx512::scale_error);
  float w[kScaleGroup] = {};
  std::copy_n(group.w, group.columns, w);
  float best = largest;
  float least = std::numeric_limits<float>::infinity();
  for (int trial = 0; trial < kTrials; ++trial) {
    const float factor = static_cast<float>(100 - trial) / 100.0f;
    const float scale = std::max(largest * factor, kSmallestScale);
    const float error = error_of({w, importance, scale});
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

// Importance of all channels, whole groups of it.
std::vector<float> fill_importance(const ConstTensorView& w, const ConstTensorView& importance) {
  std::vector<float> filled(static_cast<size_t>(groups_of(w) * kScaleGroup), 1.0f);
  if (!importance.defined()) return filled;
  check_tensor("search_scales", "importance", importance, DType::kF32, Shape{w.shape()[1]});
  for (int64_t c = 0; c < w.shape()[1]; ++c) {
    const float value = importance.as<float>()[c];
    check_data(std::isfinite(value) && value >= 0,
               "search_scales: importance: channel {}: expected a finite number from 0, got {}", c,
               value);
    filled[static_cast<size_t>(c)] = value;
  }
  return filled;
}

float quotient(float w, float scale, bool bf16_quotient) {
  const float exact = w / scale;
  return bf16_quotient ? to_float(to_bf16(exact)) : exact;
}

void split_group(const Group& group, float scale, bool bf16_quotient, WeightCodes& out,
                 std::vector<CodeExcess>& excess) {
  check_data(std::isfinite(scale) && scale > 0,
             "split_codes: scales: row {}, group {}: expected a finite number above 0, got {}",
             group.row, group.first / kScaleGroup, scale);
  int8_t* codes = out.codes.view().row_as<int8_t>(group.row) + group.first;
  for (int64_t c = 0; c < group.columns; ++c) {
    const float rounded = std::nearbyint(quotient(group.w[c], scale, bf16_quotient));
    check_data(std::fabs(rounded) <= static_cast<float>(kMaxCode),
               "split_codes: w: row {}, column {}: expected |code| up to {}, got {} / {}",
               group.row, group.first + c, kMaxCode, group.w[c], scale);
    const auto code = static_cast<int32_t>(rounded);
    const int32_t core = std::clamp(code, -128, 127);
    codes[c] = static_cast<int8_t>(core);
    if (code == core) continue;
    excess.push_back(
        {static_cast<int32_t>(group.row), static_cast<int32_t>(group.first + c), code - core});
  }
  out.scales.view().row_as<float>(group.row)[group.first / kScaleGroup] = scale;
}

}  // namespace

double WeightCodes::residual_share() const {
  return static_cast<double>(residual.size()) / static_cast<double>(codes.shape().elements());
}

WeightCodes quantize_largest(Context& context, ConstTensorView w) {
  check_weights("quantize_largest", w);
  WeightCodes out = allocate_codes(w);
  for_each_group(context, "quantize_largest", w, [&](const Group& group, int64_t index) {
    write_limited(group, largest_scale(group), index, out);
  });
  return out;
}

WeightCodes search_scales(Context& context, ConstTensorView w, ConstTensorView importance) {
  check_weights("search_scales", w);
  const std::vector<float> weights = fill_importance(w, importance);
  WeightCodes out = allocate_codes(w);
  for_each_group(context, "search_scales", w, [&](const Group& group, int64_t index) {
    const float scale = best_scale(group, largest_scale(group), weights.data() + group.first);
    write_limited(group, scale, index, out);
  });
  return out;
}

WeightCodes split_codes(Context& context, ConstTensorView w, ConstTensorView scales,
                        bool bf16_quotient) {
  check_weights("split_codes", w);
  check_tensor("split_codes", "scales", scales, DType::kF32, Shape{w.shape()[0], groups_of(w)});
  WeightCodes out = allocate_codes(w);
  // Rows arrive in any order; sorted, the list does not depend on the threads.
  std::mutex mutex;
  for_each_group(context, "split_codes", w, [&](const Group& group, int64_t index) {
    std::vector<CodeExcess> excess;
    split_group(group, scales.row_as<float>(group.row)[index], bf16_quotient, out, excess);
    if (excess.empty()) return;
    const std::lock_guard lock(mutex);
    out.residual.insert(out.residual.end(), excess.begin(), excess.end());
  });
  std::sort(out.residual.begin(), out.residual.end(), [](const CodeExcess& a, const CodeExcess& b) {
    return a.row != b.row ? a.row < b.row : a.column < b.column;
  });
  return out;
}

}  // namespace spb::spike
