// Few rows: a warp for some outputs of one expert reads their weights once, as they are stored, for
// up to eight of the expert's rows.
#include <algorithm>

#include "core/cuda/reduce.cuh"
#include "ops/moe/grouped_matmul_float.cuh"

namespace spb::ops {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kMostRows = 8;   // at a time
constexpr int kMinBlocks = 3;  // on a multiprocessor

// Targets of one launch.
template <typename T>
struct Group {
  Planes weights[kMaxTargets];
  Rows<T> y[kMaxTargets];
  int outputs[kMaxTargets];
  int first_warp[kMaxTargets + 1];  // warps before those of a target
  int count;
};

// The rows of an expert.
struct Segment {
  int expert;
  int64_t begin;
  int64_t end;
};

// Segment `index` of those that are not empty; an empty one where there are fewer.
__device__ Segment find_segment(const int64_t* offsets, int experts, int index, int lane) {
  for (int first = 0; first < experts; first += cuda::kWarpSize) {
    const int e = first + lane;
    const int64_t begin = e < experts ? offsets[e] : 0;
    const int64_t end = e < experts ? offsets[e + 1] : 0;
    const unsigned present = __ballot_sync(cuda::kFullWarp, begin < end);
    const int count = __popc(present);
    if (index >= count) {
      index -= count;
      continue;
    }
    const bool mine = begin < end && __popc(present & ((1u << lane) - 1)) == index;
    const int source = __ffs(static_cast<int>(__ballot_sync(cuda::kFullWarp, mine))) - 1;
    return {first + source, __shfl_sync(cuda::kFullWarp, begin, source),
            __shfl_sync(cuda::kFullWarp, end, source)};
  }
  return {0, 0, 0};
}

// What a lane reads of a row of the weight at once, 16 bytes of codes: units of eight elements, and
// the scales of their block.
template <DType kDtype>
struct Piece {
  static constexpr bool kFloat =
      kDtype == DType::kF32 || kDtype == DType::kF16 || kDtype == DType::kBF16;
  static constexpr int kUnits = kFloat ? 1 : (kDtype == DType::kQ8_0 ? 2 : 4);
  static constexpr bool kWithMin = kDtype == DType::kQ4_1;
  static constexpr bool kShifted = kWithMin || kDtype == DType::kQ4_0;

  uint4 words[kDtype == DType::kF32 ? 2 : 1];
  float scale;
  float minimum;

  // Zeros where the row has no such piece.
  __device__ void load(const Planes& w, int64_t row, int index, int count) {
    constexpr int kWords = sizeof(words) / sizeof(uint4);
    const bool present = index < count;
    const int64_t piece = row * count + min(index, count - 1);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = reinterpret_cast<const uint4*>(w.codes)[piece * kWords + i];
      if (kFloat && !present) words[i] = uint4{};
    }
    if constexpr (!kFloat) {
      const int64_t block = piece / (kBlock / kUnit / kUnits);
      scale = present ? __half2float(w.scales[block * (kWithMin ? 2 : 1)]) : 0.0f;
      minimum = present && kWithMin ? __half2float(w.scales[block * 2 + 1]) : 0.0f;
    }
  }

  // The values of a unit, of codes before they are shifted and scaled.
  __device__ void unpack(int unit, float (&out)[kUnit]) const {
    if constexpr (kFloat) {
      const Planes one{reinterpret_cast<const std::byte*>(words), nullptr, 1, kUnit};
      read_unit<kDtype>(one, 0, 0, out);
    } else {
      // Units 0 and 1 of q4 are the low nibbles of the block's 16 bytes, 2 and 3 the high ones.
      const bool second = unit % 2 != 0;
      const uint32_t codes[2] = {second ? words[0].z : words[0].x,
                                 second ? words[0].w : words[0].y};
#pragma unroll
      for (int i = 0; i < kUnit; ++i) {
        if constexpr (kDtype == DType::kQ8_0) {
          out[i] = static_cast<float>(static_cast<signed char>(codes[i / 4] >> (8 * (i % 4))));
        } else {
          const uint32_t nibbles = codes[i / 4] >> (unit < 2 ? 0 : 4) & 0x0f0f0f0fu;
          out[i] = static_cast<float>(nibbles >> (8 * (i % 4)) & 0xffu);
        }
      }
    }
  }

  // What the unit adds to a sum, from the sums of its values times x and of x.
  __device__ float scaled(float products, float x_sum) const {
    if constexpr (kFloat) return products;
    if constexpr (kWithMin) return scale * products + minimum * x_sum;
    return scale * (kDtype == DType::kQ4_0 ? products - 8.0f * x_sum : products);
  }
};

__device__ float dot(const float (&a)[kUnit], const float (&b)[kUnit]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) sum += a[i] * b[i];
  return sum;
}

// sums[n][m] += pieces of rows n of the weight times rows m of x, those of the segment.
template <DType kDtype, int kRows, int kOutputs, typename T>
__device__ void add_pieces(const Piece<kDtype> (&pieces)[kOutputs], const Rows<const T>& x,
                           int64_t row, int64_t end, int index, float (&sums)[kOutputs][kRows]) {
  constexpr int kUnits = Piece<kDtype>::kUnits;
  constexpr float kOnes[kUnit] = {1, 1, 1, 1, 1, 1, 1, 1};
#pragma unroll(kRows <= 2 ? kUnits : 1)
  for (int unit = 0; unit < kUnits; ++unit) {
    float values[kOutputs][kUnit];
#pragma unroll
    for (int n = 0; n < kOutputs; ++n) pieces[n].unpack(unit, values[n]);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      float in[kUnit];
      read_x(x, min(row + m, end - 1), index * kUnits + unit, in);
      const float x_sum = Piece<kDtype>::kShifted ? dot(kOnes, in) : 0.0f;
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) {
        sums[n][m] += pieces[n].scaled(dot(values[n], in), x_sum);
      }
    }
  }
}

// kOutputs rows of the weight from `first` on, times up to kRows rows of x from `row` on; a lane
// has kAhead pieces of each in flight.
template <DType kDtype, int kRows, int kOutputs, int kAhead, typename T>
__device__ void multiply(const Group<T>& targets, int t, const Rows<const T>& x,
                         const Segment& segment, int64_t row, int first, int lane) {
  const Planes& w = targets.weights[t];
  const int outputs = targets.outputs[t];
  const int64_t first_weight = int64_t{segment.expert} * outputs;
  const int count = static_cast<int>(w.columns) / (kUnit * Piece<kDtype>::kUnits);
  float sums[kOutputs][kRows] = {};
  for (int index = lane; index - lane < count; index += kAhead * cuda::kWarpSize) {
    Piece<kDtype> pieces[kAhead][kOutputs];
#pragma unroll
    for (int i = 0; i < kAhead * kOutputs; ++i) {
      const int piece = index + i / kOutputs * cuda::kWarpSize;
      const int n = i % kOutputs;
      pieces[i / kOutputs][n].load(w, first_weight + min(first + n, outputs - 1), piece, count);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int piece = min(index + i * cuda::kWarpSize, count - 1);
      add_pieces<kDtype, kRows, kOutputs>(pieces[i], x, row, segment.end, piece, sums);
    }
  }
#pragma unroll
  for (int i = 0; i < kOutputs * kRows; ++i) {
    const int n = i / kRows;
    const int m = i % kRows;
    const float sum = cuda::warp_sum(sums[n][m]);
    if (lane == 0 && first + n < outputs && row + m < segment.end) {
      targets.y[t].row(row + m)[first + n] = cuda::from_float<T>(sum);
    }
  }
}

// The same in parts that leave registers for the warps beside this one.
template <DType kDtype, int kRows, int kOutputs, typename T>
__device__ void multiply_parts(const Group<T>& targets, int t, const Rows<const T>& x,
                               const Segment& segment, int64_t row, int first, int lane) {
  constexpr int kPart = kRows == 1 ? kOutputs : 2;
  constexpr bool kNarrow = sizeof(T) == 2 && kRows == 1;  // there are registers for more
  constexpr bool kFour = kDtype == DType::kQ4_0 || kDtype == DType::kQ4_1;
  constexpr bool kHalf = kDtype == DType::kBF16 || kDtype == DType::kF16;
  constexpr int kAhead = kRows > 2 ? 1 : (kNarrow && kHalf ? 4 : 2);
  // Short rows have no four pieces for a lane.
  constexpr int64_t kLongRow = 2 * cuda::kWarpSize * kBlock;
  const bool longer = kNarrow && kFour && targets.weights[t].columns > kLongRow;
#pragma unroll 1
  for (int part = 0; part < kOutputs; part += kPart) {
    if (longer) {
      multiply<kDtype, kRows, kPart, 4>(targets, t, x, segment, row, first + part, lane);
    } else {
      multiply<kDtype, kRows, kPart, kAhead>(targets, t, x, segment, row, first + part, lane);
    }
  }
}

// Experts along y of the grid, by their number among those that have rows.
template <DType kDtype, int kOutputs, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    few_rows_kernel(const __grid_constant__ Group<T> targets, Rows<const T> x,
                    const int64_t* offsets, int experts) {
  cuda::let_next_begin();
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / cuda::kWarpSize);
  if (warp >= targets.first_warp[targets.count]) return;
  cuda::wait_for_earlier();
  const Segment segment = find_segment(offsets, experts, static_cast<int>(blockIdx.y), lane);
  int t = 0;
  while (warp >= targets.first_warp[t + 1]) ++t;
  const int first = (warp - targets.first_warp[t]) * kOutputs;
  for (int64_t row = segment.begin; row < segment.end; row += kMostRows) {
    const int64_t count = segment.end - row;
    if (count == 1) {
      multiply_parts<kDtype, 1, kOutputs>(targets, t, x, segment, row, first, lane);
    } else if (count == 2) {
      multiply_parts<kDtype, 2, kOutputs>(targets, t, x, segment, row, first, lane);
    } else if (count <= 4) {
      multiply_parts<kDtype, 4, kOutputs>(targets, t, x, segment, row, first, lane);
    } else {
      multiply_parts<kDtype, kMostRows, kOutputs>(targets, t, x, segment, row, first, lane);
    }
  }
}

template <DType kDtype, int kOutputs, typename T>
void launch(Context& context, const GroupedMatmulArgs& args,
            std::span<const GroupedMatmulTarget> some) {
  const auto experts = static_cast<int>(args.offsets.size()) - 1;
  Group<T> targets{};
  for (const GroupedMatmulTarget& target : some) {
    const int i = targets.count++;
    targets.weights[i] = expert_planes(target);
    targets.y[i] = cuda::rows_of<T>(target.y);
    targets.outputs[i] = static_cast<int>(target.y.shape()[1]);
    targets.first_warp[i + 1] =
        targets.first_warp[i] + static_cast<int>(cuda::ceil_divide(targets.outputs[i], kOutputs));
  }
  const dim3 blocks(
      static_cast<unsigned>(cuda::ceil_divide(targets.first_warp[targets.count], kWarps)),
      static_cast<unsigned>(std::min<int64_t>(args.x.shape()[0], experts)));
  cuda::launch_early(context, "grouped_matmul: few rows", blocks, kThreads, 0,
                     few_rows_kernel<kDtype, kOutputs, T>, targets, cuda::rows_of<T>(args.x),
                     args.offsets.data(), experts);
}

// Outputs whose warps fill the device, as in matmul; a sum does not depend on the choice.
constexpr int64_t kManyOutputs = 12000;

}  // namespace

void grouped_matmul_few_rows(Context& context, const GroupedMatmulArgs& args) {
  const auto experts = static_cast<int64_t>(args.offsets.size()) - 1;
  for (size_t begin = 0; begin < args.targets.size();) {
    const DType dtype = args.targets[begin].weights[0]->dtype();
    size_t end = begin;
    int64_t outputs = 0;
    while (end < args.targets.size() && end - begin < kMaxTargets &&
           args.targets[end].weights[0]->dtype() == dtype) {
      outputs += args.targets[end++].y.shape()[1];
    }
    const auto some = args.targets.subspan(begin, end - begin);
    const bool many = outputs * std::min(args.x.shape()[0], experts) >= kManyOutputs;
    cuda::with_activation(args.x.dtype(), [&](auto type) {
      using T = decltype(type);
      cuda::with_row_format(dtype, [&]<DType kDtype>() {
        many ? launch<kDtype, 4, T>(context, args, some)
             : launch<kDtype, 2, T>(context, args, some);
      });
    });
    begin = end;
  }
}

}  // namespace spb::ops
