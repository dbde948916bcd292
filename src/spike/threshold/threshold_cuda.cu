#include "spike/threshold/threshold_cuda.h"

#include "core/cuda/fault.cuh"
#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/swiglu/swiglu.cuh"
#include "ops/swiglu/swiglu.h"
#include "spike/threshold/spike_counts.cuh"

namespace spb::spike {
namespace {

using cuda::Pack;
using cuda::Rows;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int64_t kWarpChannels = 512;       // rows up to this width are one warp's work
constexpr int64_t kManyRows = 1024;          // from here on wider ones too, if eight wait in
constexpr int64_t kWarpsBytes = 64 * 1024;   // so many bytes
constexpr int64_t kSharedBytes = 96 * 1024;  // for rows that wait there; longer ones are read twice

template <typename T>
struct Args {
  Rows<const T> x;
  Rows<const T> up;  // if the drives are those of swiglu; then rows are staged
  Rows<int8_t> core;
  float* thresholds;
  int8_t* burst_groups;
  int64_t rows;
  int channels;
  int groups;
  float k;
  float min_threshold;
  float max_threshold;
  float dead_zone;
  bool bf16_mean;
  cuda::FaultSink faults;
};

// The canonical sum, by one warp; lane 0 has it. Rows of pairs: a lane has partial 2 lane and the
// next.
template <typename T>
__device__ float absolute_sum_of_pairs(const T* x, int channels, int lane) {
  constexpr int kPartials = static_cast<int>(kThresholdPartials);
  float even = 0;
  float odd = 0;
  const auto add = [&](const Pack<T, 2>& pair) {
    even += fabsf(cuda::to_float(pair.at[0]));
    odd += fabsf(cuda::to_float(pair.at[1]));
  };
  const int whole = channels / kPartials * kPartials;
#pragma unroll 8
  for (int c = 2 * lane; c < whole; c += kPartials) add(Pack<T, 2>::load(x + c));
  if (whole + 2 * lane < channels) add(Pack<T, 2>::load(x + whole + 2 * lane));
#pragma unroll
  for (int n = cuda::kWarpSize / 2; n > 0; n /= 2) {
    even += __shfl_down_sync(cuda::kFullWarp, even, n);
    odd += __shfl_down_sync(cuda::kFullWarp, odd, n);
  }
  return even + odd;
}

// The same of any row.
template <typename T>
__device__ float absolute_sum(const T* x, int channels, int lane) {
  float low = 0;   // partial[lane]
  float high = 0;  // partial[lane + 32]
  const int whole = channels / static_cast<int>(kThresholdPartials);
#pragma unroll 8
  for (int i = 0; i < whole; ++i) {
    const int c = i * static_cast<int>(kThresholdPartials) + lane;
    low += fabsf(cuda::to_float(x[c]));
    high += fabsf(cuda::to_float(x[c + cuda::kWarpSize]));
  }
  const int c = whole * static_cast<int>(kThresholdPartials) + lane;
  if (c < channels) low += fabsf(cuda::to_float(x[c]));
  if (c + cuda::kWarpSize < channels) high += fabsf(cuda::to_float(x[c + cuda::kWarpSize]));
  low += high;
#pragma unroll
  for (int n = cuda::kWarpSize / 2; n > 0; n /= 2) low += __shfl_down_sync(cuda::kFullWarp, low, n);
  return low;
}

template <typename T>
__device__ float firing_threshold(const Args<T>& args, float sum) {
  float mean = __fdiv_rn(sum, static_cast<float>(args.channels));
  if (args.bf16_mean) mean = cuda::to_float(__float2bfloat16_rn(mean));
  return fminf(fmaxf(__fdiv_rn(mean, args.k), args.min_threshold), args.max_threshold);
}

// A threshold and what to multiply by instead of dividing.
struct Divisor {
  float threshold;
  float inverse;
};

// Added to |count| < 2^22 it leaves the count in the low bits.
constexpr float kIntegers = 12582912.0f;

// round_half_even(x / threshold), in most cases without the division. The product with the inverse
// lies within 2^-22 of the correctly rounded quotient, relative to either: both round to the same
// count unless a half is as near. Then, and for what is large or not finite, `sure` is false.
__device__ float likely_count(float x, const Divisor& by, bool& sure) {
  const float near = __fmul_rn(x, by.inverse);
  const float count = __fsub_rn(__fadd_rn(near, kIntegers), kIntegers);
  sure = fabsf(__fsub_rn(near, count)) < __fmaf_rn(fabsf(near), -0x1p-21f, 0.5f);
  return count;
}

// The cores of a pack that neither bursts nor has a count that likely_count could miss; false for
// other packs. Most packs are such, and this takes a third of the instructions of each on its own.
template <int kPack, typename T>
__device__ bool likely_cores(const Pack<T, kPack>& drives, float inverse,
                             Pack<int8_t, kPack>& cores) {
  constexpr auto kLimit = static_cast<float>(kCoreLimit);
  constexpr float kNearest = 0.5f - kLimit * 0x1p-21f;
  bool sure = true;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float near = __fmul_rn(cuda::to_float(drives.at[i]), inverse);
    const float shifted = __fadd_rn(near, kIntegers);
    const float apart = __fsub_rn(near, __fsub_rn(shifted, kIntegers));
    sure = sure & (fabsf(near) < kLimit) & (fabsf(apart) < kNearest);
    cores.at[i] = static_cast<int8_t>(__float_as_int(shifted));
  }
  return sure;
}

// The count by its definition; what is wrong with it is reported.
template <typename T>
__device__ float checked_count(const Args<T>& args, int64_t row, int channel, float x,
                               float threshold) {
  const float count = rounded_count(x, threshold);
  if (!isfinite(x)) {
    cuda::report(args.faults, cuda::FaultKind::kNotFinite, row, channel);
  } else if (fabsf(count) > static_cast<float>(kMaxCount)) {
    cuda::report(args.faults, cuda::FaultKind::kCountTooLarge, row, channel);
  }
  return count;
}

// The core of a count; what exceeds it is flagged.
template <typename T>
__device__ int8_t fire(const Args<T>& args, int64_t row, int channel, float x, const Divisor& by) {
  bool sure = false;
  float count = likely_count(x, by, sure);
  if (!sure) count = checked_count(args, row, channel, x, by.threshold);
  const float size = fabsf(count);
  if (!(size > args.dead_zone)) return 0;
  constexpr auto kLimit = static_cast<float>(kCoreLimit);
  if (size > kLimit) args.burst_groups[row * args.groups + channel / kFlagGroup] = 1;
  const float core = fminf(fmaxf(count, -kLimit), kLimit);
  return static_cast<int8_t>(__float_as_int(core + kIntegers));
}

// Puts a row of drives into shared memory.
template <bool kSwiglu, int kPack, typename T>
__device__ void stage(const Args<T>& args, int64_t row, int thread, int width, T* to) {
  for (int c = thread * kPack; c < args.channels; c += width * kPack) {
    auto drives = Pack<T, kPack>::load(args.x.row(row) + c);
    if constexpr (kSwiglu) {
      const auto up = Pack<T, kPack>::load(args.up.row(row) + c);
#pragma unroll
      for (int i = 0; i < kPack; ++i) drives.at[i] = ops::gated(drives.at[i], up.at[i]);
    }
    drives.store(to + c);
  }
}

// How a launch treats rows; known to the compiler, which then reads shared memory as such.
template <bool kOfBlock, bool kOfSwiglu, bool kInShared, int kInPack>
struct RowForm {
  static constexpr bool kWholeBlock = kOfBlock;  // fires a row, else a warp does
  static constexpr bool kSwiglu = kOfSwiglu;
  static constexpr bool kStaged = kInShared;  // rows wait in shared memory
  static constexpr int kPack = kInPack;
  static constexpr int kWidth = kOfBlock ? kThreads : cuda::kWarpSize;
};

// The threshold of a row by one warp, in all its lanes.
template <int kPack, typename T>
__device__ float threshold_of(const Args<T>& args, const T* x, int lane) {
  float sum = 0;
  if constexpr (kPack > 1) {
    sum = absolute_sum_of_pairs(x, args.channels, lane);
  } else {
    sum = absolute_sum(x, args.channels, lane);
  }
  return __shfl_sync(cuda::kFullWarp, firing_threshold(args, sum), 0);
}

// Counts of a row.
template <typename Form, typename T>
__device__ void fire_row(const Args<T>& args, const T* x, int64_t row, int thread,
                         float threshold) {
  constexpr int kPack = Form::kPack;
  const Divisor by{threshold, __frcp_rn(threshold)};
  int8_t* cores = args.core.row(row);
  for (int c = thread * kPack; c < args.channels; c += Form::kWidth * kPack) {
    Pack<int8_t, kPack> likely;
    const bool sure = likely_cores(Pack<T, kPack>::load(x + c), by.inverse, likely);
    if (sure && args.dead_zone == 0) {
      likely.store(cores + c);
      continue;
    }
#pragma unroll 1
    for (int i = c; i < c + kPack; ++i) cores[i] = fire(args, row, i, cuda::to_float(x[i]), by);
  }
}

template <typename Form, typename T>
__global__ void __launch_bounds__(kThreads) threshold_kernel(const Args<T> args) {
  static_assert(Form::kStaged || !Form::kSwiglu);
  extern __shared__ __align__(16) unsigned char storage[];
  __shared__ float of_block;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int thread = static_cast<int>(threadIdx.x) % Form::kWidth;
  const int64_t row = Form::kWholeBlock ? int64_t{blockIdx.x} : int64_t{blockIdx.x} * kWarps + warp;
  if (row >= args.rows) return;
  const T* x = args.x.row(row);
  for (int g = thread; g < args.groups; g += Form::kWidth) {
    args.burst_groups[row * args.groups + g] = 0;
  }
  if constexpr (Form::kStaged) {
    T* kept = reinterpret_cast<T*>(storage) + (Form::kWholeBlock ? 0 : warp * args.channels);
    stage<Form::kSwiglu, Form::kPack>(args, row, thread, Form::kWidth, kept);
    x = kept;
  }
  if constexpr (Form::kWholeBlock) {
    __syncthreads();
    if (warp == 0) {
      const float threshold = threshold_of<Form::kPack>(args, x, thread);
      if (thread == 0) args.thresholds[row] = of_block = threshold;
    }
    __syncthreads();
    fire_row<Form>(args, x, row, thread, of_block);
  } else {
    __syncwarp();
    const float threshold = threshold_of<Form::kPack>(args, x, thread);
    if (thread == 0) args.thresholds[row] = threshold;
    fire_row<Form>(args, x, row, thread, threshold);
  }
}

// Bytes of shared memory for the rows of a block.
template <bool kWholeBlock, typename T>
int64_t staged_bytes(int64_t channels) {
  return channels * static_cast<int64_t>(sizeof(T)) * (kWholeBlock ? 1 : kWarps);
}

template <typename Form, typename T>
void launch(Context& context, const Args<T>& args) {
  const int64_t bytes = Form::kStaged ? staged_bytes<Form::kWholeBlock, T>(args.channels) : 0;
  const auto kernel = threshold_kernel<Form, T>;
  cuda::allow_shared_memory(context, kernel, static_cast<int>(kSharedBytes));
  const int64_t blocks = Form::kWholeBlock ? args.rows : cuda::ceil_divide(args.rows, kWarps);
  kernel<<<static_cast<unsigned>(blocks), kThreads, static_cast<size_t>(bytes),
           cuda::stream_of(context)>>>(args);
  cuda::check_launch("spike_threshold");
}

template <int kPack, typename T>
void choose_form(Context& context, const Args<T>& args) {
  const bool swiglu = args.up.data != nullptr;
  const bool by_warps =
      args.channels <= kWarpChannels ||
      (args.rows >= kManyRows && staged_bytes<false, T>(args.channels) <= kWarpsBytes);
  if (by_warps) {
    return swiglu ? launch<RowForm<false, true, true, kPack>>(context, args)
                  : launch<RowForm<false, false, true, kPack>>(context, args);
  }
  if (swiglu) return launch<RowForm<true, true, true, kPack>>(context, args);
  staged_bytes<true, T>(args.channels) <= kSharedBytes
      ? launch<RowForm<true, false, true, kPack>>(context, args)
      : launch<RowForm<true, false, false, kPack>>(context, args);
}

// In packs that give every lane of a warp work, where rows have room for them.
template <typename T>
void choose_pack(Context& context, const ThresholdArgs& from, const Args<T>& args) {
  constexpr int kPack = cuda::kPackSize<T>;
  const auto fits = [&](int pack) {
    return args.channels >= cuda::kWarpSize * pack && cuda::packs_fit(from.x, pack) &&
           cuda::packs_fit(from.out->core, pack) &&
           (!from.up.defined() || cuda::packs_fit(from.up, pack));
  };
  if (fits(kPack)) return choose_form<kPack>(context, args);
  fits(kPack / 2) ? choose_form<kPack / 2>(context, args) : choose_form<1>(context, args);
}

// Rows too long for shared memory get their drives in the arena.
template <typename T>
ThresholdArgs with_drives(Context& context, const ThresholdArgs& args) {
  if (!args.up.defined() || staged_bytes<true, T>(args.x.shape()[1]) <= kSharedBytes) return args;
  const TensorView drives = context.arena().tensor(args.x.dtype(), args.x.shape());
  ops::swiglu(context, {args.x, args.up, drives});
  ThresholdArgs plain = args;
  plain.x = drives;
  plain.up = {};
  return plain;
}

// One thread for each pack of any row: heads are rows too short for a block.
template <int kPack, typename T>
__global__ void __launch_bounds__(kThreads) values_kernel(const DeviceCounts counts, Rows<T> y) {
  const int64_t pack = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int packs_of_row = counts.channels / kPack;
  const int64_t row = pack / packs_of_row;
  if (row >= counts.rows) return;
  const int first = static_cast<int>(pack - row * packs_of_row) * kPack;
  const float threshold = counts.thresholds[row];
  const auto core = Pack<signed char, kPack>::load(counts.core + row * counts.core_stride + first);
  Pack<T, kPack> values;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const int count = core.at[i] + counts.excess(row, first + i, core.at[i]);
    values.at[i] = cuda::from_float<T>(__fmul_rn(threshold, static_cast<float>(count)));
  }
  values.store(y.row(row) + first);
}

}  // namespace

void spike_threshold_cuda(Context& context, const ThresholdArgs& given) {
  SpikeCounts& out = *given.out;
  const Shape& shape = given.x.shape();
  const int64_t groups = cuda::ceil_divide(shape[1], kFlagGroup);
  out.active_begin.clear();
  out.burst_groups = context.arena().tensor(DType::kI8, Shape{shape[0], groups});
  cuda::with_activation(given.x.dtype(), [&](auto type) {
    using T = decltype(type);
    const ThresholdArgs args = with_drives<T>(context, given);
    out.drives = args.x;
    out.ups = args.up;
    const Args<T> kernel_args{.x = cuda::rows_of<T>(args.x),
                              .up = args.up.defined() ? cuda::rows_of<T>(args.up) : Rows<const T>{},
                              .core = cuda::rows_of<int8_t>(out.core),
                              .thresholds = out.thresholds.as<float>(),
                              .burst_groups = out.burst_groups.as<int8_t>(),
                              .rows = shape[0],
                              .channels = static_cast<int>(shape[1]),
                              .groups = static_cast<int>(groups),
                              .k = static_cast<float>(args.settings.k),
                              .min_threshold = args.settings.min_threshold,
                              .max_threshold = args.settings.max_threshold,
                              .dead_zone = static_cast<float>(args.settings.dead_zone),
                              .bf16_mean = args.settings.bf16_mean,
                              .faults = cuda::fault_sink(context.stream())};
    choose_pack<T>(context, args, kernel_args);
  });
}

void spike_values_cuda(Context& context, const SpikeCounts& counts, TensorView y) {
  if (y.shape().elements() == 0) return;
  const DeviceCounts device = device_counts("spike_values", counts);
  cuda::with_activation(y.dtype(), [&](auto type) {
    using T = decltype(type);
    constexpr int kPack = cuda::kPackSize<T>;
    const bool packs = cuda::packs_fit(y, kPack) && cuda::packs_fit(counts.core, kPack);
    const auto kernel = packs ? values_kernel<kPack, T> : values_kernel<1, T>;
    const int64_t threads = y.shape().elements() / (packs ? kPack : 1);
    const auto blocks = static_cast<unsigned>(cuda::ceil_divide(threads, kThreads));
    kernel<<<blocks, kThreads, 0, cuda::stream_of(context)>>>(device, cuda::rows_of<T>(y));
  });
  cuda::check_launch("spike_values");
}

}  // namespace spb::spike
