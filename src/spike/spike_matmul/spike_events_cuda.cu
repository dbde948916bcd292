// Event-driven products: the weights of silent channels are never read.
//
// First kernel: a block takes 512 rows of weights and one group of channels, finds those that fire,
// and shares them among its warps; a thread adds 16 rows of them. Second kernel: the sums of the
// groups, scaled, in ascending order.
#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kRows = static_cast<int>(kDeviceChannelRows);
constexpr int kRowsPerThread = kRows / cuda::kWarpSize;

using Piece = cuda::Pack<signed char, kRowsPerThread>;

struct Problem {
  DeviceTargets targets;  // pieces are blocks of 512 rows
  DeviceCounts counts;    // one row
  float* sums;            // [groups, pieces * 512]
  int64_t width;          // pieces * 512
};

// A channel that fires.
struct Event {
  int channel;  // of the group
  int count;
};

// Lists the group's events and says how many; all threads of the block get the number.
__device__ int list_events(const DeviceCounts& counts, int group, Event* events, int* warp_counts) {
  static_assert(kThreads == kFlagGroup);
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int channel = group * kFlagGroup + static_cast<int>(threadIdx.x);
  const int count = channel < counts.channels ? counts.count(0, channel) : 0;
  const unsigned fired = __ballot_sync(cuda::kFullWarp, count != 0);
  if (lane == 0) warp_counts[warp] = __popc(fired);
  __syncthreads();
  int before = 0;
  int total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    before += i < warp ? warp_counts[i] : 0;
    total += warp_counts[i];
  }
  if (count != 0) {
    events[before + __popc(fired & ((1u << lane) - 1))] = {static_cast<int>(threadIdx.x), count};
  }
  __syncthreads();
  return total;
}

// What codes beyond int8 add to the rows of a thread.
__device__ int64_t beyond_core(const DeviceWeight& w, const DeviceCounts& counts, int64_t row,
                               int group) {
  int64_t sum = 0;
  const int64_t cell = row / kBlockRows * w.groups + group;
  for (int64_t e = w.excess_begin[cell]; e < w.excess_begin[cell + 1]; ++e) {
    if (w.excess[e].row != row % kBlockRows) continue;
    sum += int64_t{w.excess[e].excess} * counts.count(0, group * kFlagGroup + w.excess[e].column);
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads) add_events_kernel(const __grid_constant__ Problem p) {
  __shared__ Event events[kFlagGroup];
  __shared__ int warp_counts[kWarps];
  __shared__ unsigned long long shared_sums[kRows];
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const auto group = static_cast<int>(blockIdx.y);
  const int t = p.targets.target_of(blockIdx.x);
  const DeviceWeight& w = p.targets.weights[t];
  const int64_t block = int64_t{blockIdx.x} - p.targets.first_piece[t];
  const int64_t padded = cuda::ceil_divide(w.rows, kRows) * kRows;
  for (int i = static_cast<int>(threadIdx.x); i < kRows; i += kThreads) shared_sums[i] = 0;
  const int total = list_events(p.counts, group, events, warp_counts);
  const signed char* codes =
      w.channels + group * kFlagGroup * padded + block * kRows + lane * kRowsPerThread;
  const bool wide = p.counts.bursts(0, group);  // products may leave 32 bits
  int sums[kRowsPerThread] = {};
  int64_t wide_sums[kRowsPerThread] = {};
#pragma unroll 4
  for (int e = warp; e < total; e += kWarps) {
    const Event event = events[e];
    const auto piece = Piece::load(codes + event.channel * padded);
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      if (wide) {
        wide_sums[i] += int64_t{event.count} * piece.at[i];
      } else {
        sums[i] += event.count * piece.at[i];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    // Neighbouring lanes, neighbouring words.
    atomicAdd(&shared_sums[i * cuda::kWarpSize + lane],
              static_cast<unsigned long long>(wide_sums[i] + sums[i]));
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows; i += kThreads) {
    const int row_in_block = i % cuda::kWarpSize * kRowsPerThread + i / cuda::kWarpSize;
    const int64_t row = block * kRows + row_in_block;
    auto sum = static_cast<int64_t>(shared_sums[i]);
    if (w.excess != nullptr && row < w.rows) sum += beyond_core(w, p.counts, row, group);
    p.sums[group * p.width + int64_t{blockIdx.x} * kRows + row_in_block] = __ll2float_rn(sum);
  }
}

__global__ void __launch_bounds__(kThreads) add_groups_kernel(const __grid_constant__ Problem p) {
  const int64_t place = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int t = p.targets.target_of(place / kRows);
  const DeviceWeight& w = p.targets.weights[t];
  const int64_t row = place - p.targets.first_piece[t] * kRows;
  if (row >= w.rows) return;
  const float* scales =
      w.scales + row / kTileOutputs * w.groups * kTileOutputs + row % kTileOutputs;
  float sum = 0;
#pragma unroll 8
  for (int g = 0; g < w.groups; ++g) {
    sum = __fmaf_rn(p.sums[g * p.width + place], scales[int64_t{g} * kTileOutputs], sum);
  }
  const DeviceOutput& out = p.targets.outputs[t];
  out.store(0, row, out.result(row, p.counts.thresholds[0], sum));
}

}  // namespace

void multiply_fired(Context& context, const DeviceCounts& counts,
                    std::span<const SpikeMatmulTarget> targets) {
  Problem p{device_targets(targets,
                           [](const DeviceWeight& w) { return cuda::ceil_divide(w.rows, kRows); }),
            counts, nullptr, 0};
  const int64_t pieces = p.targets.first_piece[p.targets.count];
  p.width = pieces * kRows;
  p.sums = context.arena().allocate<float>(p.width * counts.groups);
  add_events_kernel<<<dim3(static_cast<unsigned>(pieces), static_cast<unsigned>(counts.groups)),
                      kThreads, 0, cuda::stream_of(context)>>>(p);
  cuda::check_launch("spike_matmul: events");
  add_groups_kernel<<<static_cast<unsigned>(p.width / kThreads), kThreads, 0,
                      cuda::stream_of(context)>>>(p);
  cuda::check_launch("spike_matmul: groups");
}

}  // namespace spb::spike
