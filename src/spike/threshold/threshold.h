// spike_threshold: the adaptive-threshold neuron. Turns each row of drives into signed spike
// counts.
//
//   sum[m]     = canonical sum over c of |x[m, c]|                                    (below)
//   mean[m]    = sum[m] / K, rounded to bf16 if settings.bf16_mean
//   v[m]       = min(max(mean[m] / k, min_threshold), max_threshold)
//   s[m, c]    = round_half_even(x[m, c] / v[m]);  0 if |s[m, c]| <= dead_zone
//   core[m, c] = min(max(s[m, c], -127), 127)
//   bursts     = {m, c, s[m, c] - core[m, c]} wherever that is not 0
//   active     = the channels c with s[m, c] != 0
//
//   name            shape    dtype  access
//   x               [M, K]   f32    read; K at least 1 unless M is 0
//   up              [M, K]   f32    read; optional: then the drives are those of swiglu
//   (ops/swiglu)
//                                   with x as the gate, and written nowhere
//   out.core        [M, K]   i8     overwritten; owned by the caller, apart from x
//   out.thresholds  [M]      f32    overwritten; owned by the caller, apart from x
//   out.bursts      -        -      overwritten; sorted by (row, channel)
//   out.active, out.active_begin    overwritten; empty unless want_active
//   out.drives, out.burst_groups    overwritten; undefined except on a CUDA device
//
// On a CUDA device x and up are f32 or bf16, which is widened, and the lists stay empty, as their
// length would have to be waited for. Instead the counts remember x and up: a count at an end of
// the core is computed again where it is used, with these same operations. burst_groups lie in the
// context's arena, within the caller's scope.
//
// A row is what shares a threshold: a token, or one head of a token for queries (the caller
// reshapes them to [tokens * heads, head_dim]). The drive is approximated by v[m] * s[m, c].
//
// Numerics: every operation is one correctly rounded f32 operation, so the counts have the same
// bits for every instruction set and number of threads, and any other backend can reproduce them.
// The canonical sum has 64 partial sums: partial[c mod 64] += |x[c]| for ascending c, starting from
// 0, followed by six halvings partial[i] += partial[i + n], n = 32, 16, 8, 4, 2, 1, for i < n: a
// warp of 32 lanes keeps two partials per lane and folds by shuffles. A sum of finite drives that
// overflows is infinite, so v is max_threshold.
// The mean differs from the exact one by less than (K / 64 + 8) * 2^-24 relative.
//
// Errors: kData where x is not finite, or |s| exceeds 2^24 (above it f32 skips integers): the
// message names the first row and channel; from a CUDA device it comes when its stream is next
// waited for, and names one of them (core/cuda/fault.h). kUsage for wrong shapes or settings. After
// an error the outputs are unspecified. Cost: x is read from memory once and from a near cache once
// more; M * K divisions. Source: the SpikingBrain-7B report (2025), equations 19 to 21 and its
// released quantised layer.
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::spike {

inline constexpr int32_t kCoreLimit = 127;         // largest |count| held by the core
inline constexpr int32_t kMaxCount = 1 << 24;      // largest |count|
inline constexpr int64_t kThresholdPartials = 64;  // partial sums of the canonical order

// What a count exceeds the core by.
struct Burst {
  int32_t row;
  int32_t channel;
  int32_t excess;  // count - core

  bool operator==(const Burst&) const = default;
};

struct SpikeCounts {
  TensorView core;        // [M, K] i8
  TensorView thresholds;  // [M] f32
  std::vector<Burst> bursts;
  std::vector<int32_t> active;        // of row m: active_begin[m] .. active_begin[m + 1], ascending
  std::vector<int64_t> active_begin;  // M + 1

  // On a CUDA device, instead of the lists.
  ConstTensorView drives = {};   // the x of these counts: must stay as it is while they are used
  ConstTensorView ups = {};      // and their up
  TensorView burst_groups = {};  // [M, groups of 128 channels] i8: 1 where a count exceeds the core
};

struct ThresholdSettings {
  double k = 3.0;               // used as f32; a larger k fires more
  float min_threshold = 1e-5f;  // 0 < min_threshold <= max_threshold
  float max_threshold = 1e4f;
  int32_t dead_zone = 0;   // changes the result: small counts are silenced
  bool bf16_mean = false;  // as a reference that runs in bf16 does
};

struct ThresholdArgs {
  ConstTensorView x;
  ThresholdSettings settings;
  SpikeCounts* out = nullptr;
  bool want_active = false;
  ConstTensorView up = {};
};

void spike_threshold(Context& context, const ThresholdArgs& args);
// Drives as they are: without `up`.
void spike_threshold_reference(const ThresholdArgs& args);

// The gradient of y = v * s with respect to x. Rounding is passed straight through and the
// threshold taken as a constant, so
//
//   d_x[m, c] = d_y[m, c] where the dead zone silenced nothing, else 0
//
// that is where dead_zone is 0 or core[m, c] is not 0. core [M, K] i8 is of the forward pass, with
// its dead zone; d_y [M, K] f32 is read; d_x [M, K] f32 is overwritten and may be d_y.
struct ThresholdBackwardArgs {
  ConstTensorView core;
  ConstTensorView d_y;
  int32_t dead_zone = 0;
  TensorView d_x;
};

void spike_threshold_backward(Context& context, const ThresholdBackwardArgs& args);

}  // namespace spb::spike
