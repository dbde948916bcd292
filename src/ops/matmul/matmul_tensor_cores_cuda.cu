// Few rows of x on Hopper, x and weights in bf16, with tensor cores. They multiply x [16, K] by a
// band of eight rows of the weight at a time; a weight is read once, whatever the number of rows.
//
// A block has rows of the weights, and its warps share their columns. A warp goes through its
// columns piece by piece: a piece of x stays in registers while those of several bands, a group,
// are multiplied by it. The copy engine keeps pieces in flight for every warp, and the first ones
// of the weight are asked for before the kernels queued earlier have ended.
//
// The numbers are added in an order that K alone decides: along the columns of a warp, then over
// the warps. So a row of x gives the same bits beside however many others.
#include <algorithm>

#include "core/cuda/bulk_copy.cuh"
#include "core/cuda/mma.cuh"
#include "ops/matmul/matmul_few_rows.cuh"

namespace spb::ops {
namespace {

using cuda::Barrier;
using T = __nv_bfloat16;
using Inputs = Rows<const T>;
using AnyTargets = Targets<std::byte>;  // the dtype of y is known at run time

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kMaxRows = 16;  // of x
constexpr int kBandRows = 8;  // of the weight
constexpr int kBands = 6;     // of a group
constexpr int kStep = 32;     // columns, of which a lane multiplies a unit
constexpr int kSteps = 8;     // of a piece
// Bytes between rows of a piece: two rows that are read at once lie in different banks.
constexpr int kPitch = kSteps * kStep * static_cast<int>(sizeof(T)) + 64;
constexpr int kXBytes = kMaxRows * kPitch;
constexpr int kSlotBytes = kBandRows * kPitch;
constexpr int kStages = 3;  // in flight
constexpr int kBytesOfWarp = kXBytes + kStages * kSlotBytes;
constexpr int kSumsOfWarp = kBands * 4 * cuda::kWarpSize;
constexpr int kSharedBytes =
    kWarps * (kBytesOfWarp + kSumsOfWarp * static_cast<int>(sizeof(float)));

// The steps of K that are a warp's, in pieces of about the same size.
struct Part {
  int first;
  int end;
  int pieces;
  int piece_steps;

  __device__ explicit Part(int64_t columns) {
    const auto all = static_cast<int>((columns + kStep - 1) / kStep);
    const int share = (all + kWarps - 1) / kWarps;
    first = min(static_cast<int>(threadIdx.x) / cuda::kWarpSize * share, all);
    end = min(first + share, all);
    pieces = (end - first + kSteps - 1) / kSteps;
    piece_steps = pieces == 0 ? 0 : (end - first + pieces - 1) / pieces;
  }
  __device__ int begin_of(int piece) const { return min(first + piece * piece_steps, end); }
};

// A block's rows of all targets one after another, and its bands in groups of about the same size.
struct Groups {
  int first_row;
  int end_row;
  int bands;
  int count;

  __device__ explicit Groups(int64_t rows)
      : first_row(static_cast<int>(rows * blockIdx.x / gridDim.x)),
        end_row(static_cast<int>(rows * (blockIdx.x + 1) / gridDim.x)),
        bands((end_row - first_row + kBandRows - 1) / kBandRows),
        count((bands + kBands - 1) / kBands) {}

  __device__ int begin_of(int group) const {
    return static_cast<int>(int64_t{bands} * group / count);
  }
  __device__ int row_of(int band) const { return first_row + band * kBandRows; }
};

__device__ int target_of(const AnyTargets& targets, int row) {
  int t = 0;
  while (row >= targets.first_warp[t + 1]) ++t;
  return t;
}

struct Barriers {
  Barrier x;
  Barrier slots[kStages];
};

// The slots of a warp, and what they wait for.
class Ring {
 public:
  // Asks for the first pieces of the weight.
  __device__ Ring(const AnyTargets& targets, const Groups& groups, const Part& part,
                  std::byte* memory, Barriers& barriers)
      : targets_(targets),
        groups_(groups),
        part_(part),
        memory_(memory),
        barriers_(barriers),
        lane_(static_cast<int>(threadIdx.x) % cuda::kWarpSize) {
    if (lane_ == 0) {
      cuda::start_barrier(&barriers.x, 1);
      cuda::start_barriers(barriers.slots, 1);
      cuda::publish_barriers();
    }
    __syncwarp();
    if (part.pieces == 0) group_ = groups.count;
    begin_group();
    for (int s = 0; s < kStages; ++s) ask(s);
  }

  // A piece of x.
  __device__ void ask_for_x(const Inputs& x, int rows, int64_t columns, int piece) {
    const int64_t first = int64_t{part_.begin_of(piece)} * kStep;
    const int64_t end = min(int64_t{part_.begin_of(piece + 1)} * kStep, columns);
    const int bytes = static_cast<int>(end - first) * 2;
    if (lane_ == 0) cuda::expect_bytes(&barriers_.x, bytes * rows);
    __syncwarp();
    if (lane_ < rows) {
      cuda::copy_bulk(memory_ + lane_ * kPitch, x.row(lane_) + first, bytes, &barriers_.x);
    }
  }
  __device__ const std::byte* wait_for_x() {
    cuda::wait_for(&barriers_.x, x_parity_);
    x_parity_ ^= 1;
    return memory_;
  }

  // The next piece of the weight.
  __device__ const std::byte* wait() {
    cuda::wait_for(&barriers_.slots[stage_], parity_);
    return slot(stage_);
  }
  // It was read.
  __device__ void free() {
    __syncwarp();
    ask(stage_);
    if (++stage_ < kStages) return;
    stage_ = 0;
    parity_ ^= 1;
  }

 private:
  __device__ std::byte* slot(int stage) const { return memory_ + kXBytes + stage * kSlotBytes; }
  __device__ void begin_group() {
    if (group_ >= groups_.count) return;
    band_ = groups_.begin_of(group_);
    end_ = groups_.begin_of(group_ + 1);
  }
  // Of a group piece by piece, each of all its bands.
  __device__ void advance() {
    if (++band_ < end_) return;
    band_ = groups_.begin_of(group_);
    if (++piece_ < part_.pieces) return;
    piece_ = 0;
    ++group_;
    begin_group();
  }

  // A lane for each row. What is not a row of the block keeps what was in its place; its sums are
  // not written.
  __device__ void ask(int stage) {
    if (group_ >= groups_.count) return;
    Barrier* barrier = &barriers_.slots[stage];
    const int first_row = groups_.row_of(band_);
    const int rows = min(kBandRows, groups_.end_row - first_row);
    const int begin = part_.begin_of(piece_);
    const int end = part_.begin_of(piece_ + 1);
    const int64_t row_bytes = code_bytes_per_row(DType::kBF16, targets_.weights[0].columns);
    const int64_t first = int64_t{begin} * kStep * 2;
    const auto bytes = static_cast<int>(min(int64_t{end} * kStep * 2, row_bytes) - first);
    if (lane_ == 0) cuda::expect_bytes(barrier, bytes * rows);
    __syncwarp();
    if (lane_ < rows) {
      const int t = target_of(targets_, first_row + lane_);
      const int64_t row = first_row + lane_ - targets_.first_warp[t];
      cuda::copy_bulk(slot(stage) + lane_ * kPitch,
                      targets_.weights[t].codes + row * row_bytes + first, bytes, barrier);
    }
    advance();
  }

  const AnyTargets& targets_;
  const Groups& groups_;
  const Part& part_;
  std::byte* memory_;
  Barriers& barriers_;
  int lane_;
  int x_parity_ = 0;
  // What is multiplied next.
  int stage_ = 0;
  int parity_ = 0;
  // What is asked for next.
  int group_ = 0;
  int piece_ = 0;
  int band_ = 0;
  int end_ = 0;
};

// A lane's unit of a step of a row; zeros beyond the last of `columns`, where a slot holds
// anything. Step and lane count from the beginning of a piece.
__device__ uint4 unit_at(const std::byte* piece, int row, int step, int pair, int columns) {
  const auto unit = *reinterpret_cast<const uint4*>(piece + row * kPitch + step * (kStep * 2) +
                                                    pair * (kUnit * 2));
  return step * kStep + pair * kUnit < columns ? unit : make_uint4(0, 0, 0, 0);
}

// A lane's units of x: of rows quad and quad + 8 (core/cuda/mma.cuh). The columns of a step are in
// another order than there, the same for x and the weight. Rows that are not there hold anything;
// they make sums that are not written.
using Units = uint4[kSteps][2];

__device__ void read_x_piece(const std::byte* from, int columns, Units& x) {
  const auto lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
#pragma unroll
  for (int i = 0; i < kSteps * 2; ++i) {
    x[i / 2][i % 2] = unit_at(from, i % 2 * 8 + lane / 4, i / 2, lane % 4, columns);
  }
}

// A piece of a band.
__device__ void multiply(const std::byte* slot, const Units& x, int columns, float (&sums)[4]) {
  const auto lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const uint4 weight = unit_at(slot, lane / 4, s, lane % 4, columns);
    const uint32_t first[4] = {x[s][0].x, x[s][1].x, x[s][0].y, x[s][1].y};
    cuda::mma_bf16(sums, first, weight.x, weight.y);
    const uint32_t second[4] = {x[s][0].z, x[s][1].z, x[s][0].w, x[s][1].w};
    cuda::mma_bf16(sums, second, weight.z, weight.w);
  }
}

// The next pieces of the weight, of `bands` bands.
__device__ void multiply_bands(Ring& ring, const Units& x, int columns, int bands,
                               float (&sums)[kBands][4]) {
#pragma unroll
  for (int b = 0; b < kBands; ++b) {
    if (b >= bands) return;
    multiply(ring.wait(), x, columns, sums[b]);
    ring.free();
  }
}

// The sums of all warps, as `outputs` outputs from row `first` of all weights on.
__device__ void write_sums(const AnyTargets& targets, bool in_f32, int first, int outputs, int rows,
                           const float (&sums)[kBands][4], float* shared) {
  constexpr int kColumns = 64;  // threads side by side
  static_assert(kBands * kBandRows <= kColumns);
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % cuda::kWarpSize;
  __syncthreads();  // the sums before were read
#pragma unroll
  for (int i = 0; i < kBands * 4; ++i) {
    shared[thread / cuda::kWarpSize * kSumsOfWarp + i * cuda::kWarpSize + lane] =
        sums[i / 4][i % 4];
  }
  __syncthreads();
  const int n = thread % kColumns;
  if (n >= outputs) return;
  const int t = target_of(targets, first + n);
  const int64_t output = first + n - targets.first_warp[t];
  const float bias = targets.biases[t] == nullptr ? 0.0f : targets.biases[t][output];
  const bool accumulate = targets.accumulate[t];
#pragma unroll 1
  for (int m = thread / kColumns; m < rows; m += kThreads / kColumns) {
    const int word = m / 8 * 2 + n % 2;
    const float* part =
        shared + (n / kBandRows * 4 + word) * cuda::kWarpSize + m % 8 * 4 + n % kBandRows / 2;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += part[w * kSumsOfWarp];
    std::byte* y = targets.y[t].row(m);
    if (in_f32) {
      put(reinterpret_cast<float*>(y) + output, sum + bias, accumulate);
    } else {
      put(reinterpret_cast<T*>(y) + output, sum + bias, accumulate);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    tensor_core_kernel(const __grid_constant__ AnyTargets targets, Inputs x, int rows,
                       bool in_f32) {
  extern __shared__ __align__(128) std::byte storage[];
  __shared__ Barriers barriers[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int64_t columns = targets.weights[0].columns;
  const Part part(columns);
  const Groups groups(targets.first_warp[targets.count]);
  cuda::let_next_begin();
  Ring ring(targets, groups, part, storage + warp * kBytesOfWarp, barriers[warp]);
  cuda::wait_for_earlier();
  if (part.pieces > 0) ring.ask_for_x(x, rows, columns, 0);
  for (int group = 0; group < groups.count; ++group) {
    const int first = groups.begin_of(group);
    const int end = groups.begin_of(group + 1);
    float sums[kBands][4] = {};
    for (int piece = 0; piece < part.pieces; ++piece) {
      const auto width = static_cast<int>(min(int64_t{part.begin_of(piece + 1)} * kStep, columns) -
                                          int64_t{part.begin_of(piece)} * kStep);
      Units units;
      read_x_piece(ring.wait_for_x(), width, units);
      __syncwarp();
      const int next = piece + 1 < part.pieces ? piece + 1 : 0;
      if (next > 0 || group + 1 < groups.count) ring.ask_for_x(x, rows, columns, next);
      multiply_bands(ring, units, width, end - first, sums);
    }
    const int first_row = groups.row_of(first);
    const int outputs = min(groups.row_of(end), groups.end_row) - first_row;
    write_sums(targets, in_f32, first_row, outputs, rows, sums,
               reinterpret_cast<float*>(storage + kWarps * kBytesOfWarp));
  }
}

}  // namespace

bool streams_to_tensor_cores(Context& context, const MatmulArgs& args) {
  return context.stream().is_hopper() && args.x.dtype() == DType::kBF16 &&
         args.targets[0].weight->dtype() == DType::kBF16 && args.x.shape().rows() <= kMaxRows &&
         cuda::packs_fit(args.x, kUnit);
}

void matmul_tensor_cores(Context& context, const MatmulArgs& args) {
  const auto rows = static_cast<int>(args.x.shape().rows());
  cuda::allow_shared_memory(context, tensor_core_kernel, kSharedBytes);
  const AnyTargets targets = targets_of<std::byte>(args.targets, 0, rows, 1);
  const auto blocks = static_cast<unsigned>(
      std::min<int64_t>(context.stream().multiprocessors(), targets.first_warp[targets.count]));
  cuda::launch_early(context, "matmul", dim3(blocks), kThreads, size_t{kSharedBytes},
                     tensor_core_kernel, targets, cuda::rows_of<T>(args.x), rows,
                     args.targets[0].y.dtype() == DType::kF32);
}

}  // namespace spb::ops
