// Event-driven products of one row of counts: the weights of silent channels are never read.
//
// A block takes 128 rows of weights, and its warps share the groups of channels: a warp lists the
// channels of a group that fire, and each of its lanes adds up four rows of their weights. The sums
// of groups wait in shared memory until all are there, since they are added in ascending order.
#include <algorithm>

#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kRows = static_cast<int>(kDeviceChannelRows);
constexpr int kLaneRows = kRows / cuda::kWarpSize;
constexpr int kMostGroups = 48;  // that wait in shared memory at once

// A channel that fires.
struct Event {
  int channel;
  int count;
};

struct Problem {
  DeviceTargets targets;  // pieces are blocks of 128 rows
  DeviceCounts counts;    // one row
  Choice choice;
  int waiting;  // groups at a time
};

// What a block holds in shared memory.
struct Shared {
  Event (*events)[kFlagGroup];  // of each warp
  float (*sums)[kRows];         // of each waiting group
  float (*scales)[kRows];

  __device__ Shared(unsigned char* storage, int waiting)
      : events(reinterpret_cast<Event (*)[kFlagGroup]>(storage)),
        sums(reinterpret_cast<float (*)[kRows]>(events + kWarps)),
        scales(sums + waiting) {}

  static int bytes(int waiting) {
    return kWarps * kFlagGroup * static_cast<int>(sizeof(Event)) +
           2 * waiting * kRows * static_cast<int>(sizeof(float));
  }
};

// What fires in a group, for the warp; returns how many channels.
__device__ int list_events(const DeviceCounts& counts, int group, int lane, Event* events) {
  constexpr int kLaneChannels = kFlagGroup / cuda::kWarpSize;
  const int first = group * kFlagGroup + lane;
  int cores[kLaneChannels];
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    const int channel = first + i * cuda::kWarpSize;
    cores[i] = channel < counts.channels ? counts.core_count(0, channel) : 0;
  }
  int total = 0;
  __syncwarp();  // the list before was read
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    const int channel = first + i * cuda::kWarpSize;
    const unsigned fired = __ballot_sync(cuda::kFullWarp, cores[i] != 0);
    if (cores[i] != 0) {
      events[total + __popc(fired & ((1u << lane) - 1))] = {channel, cores[i]};
    }
    total += __popc(fired);
  }
  __syncwarp();
  return total;
}

// Makes whole counts of the cores of a list.
__device__ void add_excess(const DeviceCounts& counts, int total, int lane, Event* events) {
  for (int e = lane; e < total; e += cuda::kWarpSize) {
    events[e].count += counts.excess(0, events[e].channel, events[e].count);
  }
  __syncwarp();
}

// sums += count * code over the events, for the rows at `codes`; those of the next channel lie
// `stride` bytes on.
template <typename Sum>
__device__ void add_events(const Event* events, int total, const signed char* codes, int64_t stride,
                           Sum (&sums)[kLaneRows]) {
  static_assert(kLaneRows == 4);
  constexpr int kAhead = 8;  // loads in flight
#pragma unroll 1
  for (int first = 0; first < total; first += kAhead) {
    uint32_t words[kAhead];
    int counts[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const Event event = events[min(first + i, total - 1)];
      counts[i] = first + i < total ? event.count : 0;
      words[i] = *reinterpret_cast<const uint32_t*>(codes + event.channel * stride);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int row = 0; row < kLaneRows; ++row) {
        sums[row] += Sum{counts[i]} * static_cast<signed char>(words[i] >> (8 * row));
      }
    }
  }
}

// What codes beyond int8 add to a row.
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

// The sums of a group for a lane's rows, the first of which is `row`.
__device__ float4 sum_group(const DeviceWeight& w, const DeviceCounts& counts, int group,
                            int64_t row, int lane, Event* events) {
  const int64_t stride = cuda::ceil_divide(w.rows, kRows) * kRows;
  const int total = list_events(counts, group, lane, events);
  const bool bursts = counts.bursts(0, group);
  if (bursts) add_excess(counts, total, lane, events);
  // Where counts burst, products may leave 32 bits.
  if (!bursts && w.excess == nullptr) {
    int sums[kLaneRows] = {};
    add_events(events, total, w.channels + row, stride, sums);
    return make_float4(__int2float_rn(sums[0]), __int2float_rn(sums[1]), __int2float_rn(sums[2]),
                       __int2float_rn(sums[3]));
  }
  int64_t sums[kLaneRows] = {};
  add_events(events, total, w.channels + row, stride, sums);
  if (w.excess != nullptr) {
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      if (row + i < w.rows) sums[i] += beyond_core(w, counts, row + i, group);
    }
  }
  return make_float4(__ll2float_rn(sums[0]), __ll2float_rn(sums[1]), __ll2float_rn(sums[2]),
                     __ll2float_rn(sums[3]));
}

__global__ void __launch_bounds__(kThreads, 2) events_kernel(const __grid_constant__ Problem p) {
  extern __shared__ __align__(16) unsigned char storage[];
  if (!p.choice.takes_events()) return;
  const Shared shared(storage, p.waiting);
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % cuda::kWarpSize;
  const int warp = thread / cuda::kWarpSize;
  const int t = p.targets.target_of(blockIdx.x);
  const DeviceWeight& w = p.targets.weights[t];
  const int64_t first_row = (int64_t{blockIdx.x} - p.targets.first_piece[t]) * kRows;
  const int64_t row = first_row + lane * kLaneRows;
  // A lane's rows lie in one tile of weights.
  static_assert(kTileOutputs % kLaneRows == 0);
  const float* scales =
      w.scales + row / kTileOutputs * w.groups * kTileOutputs + row % kTileOutputs;
  float sum = 0;
  for (int first = 0; first < w.groups; first += p.waiting) {
    const int end = min(first + p.waiting, w.groups);
    for (int g = first + warp; g < end; g += kWarps) {
      float4 scale{};
      if (row < w.rows) scale = *reinterpret_cast<const float4*>(scales + g * kTileOutputs);
      reinterpret_cast<float4*>(shared.scales[g - first])[lane] = scale;
      reinterpret_cast<float4*>(shared.sums[g - first])[lane] =
          sum_group(w, p.counts, g, row, lane, shared.events[warp]);
    }
    __syncthreads();
    if (thread < kRows) {
#pragma unroll 8
      for (int g = 0; g < end - first; ++g) {
        sum = __fmaf_rn(shared.sums[g][thread], shared.scales[g][thread], sum);
      }
    }
    __syncthreads();
  }
  if (thread >= kRows || first_row + thread >= w.rows) return;
  const DeviceOutput& out = p.targets.outputs[t];
  out.store(0, first_row + thread, out.result(first_row + thread, p.counts.thresholds[0], sum));
}

// One block: how many channels of a row fire.
__global__ void count_fired_kernel(const __grid_constant__ DeviceCounts counts, int* fired) {
  int total = 0;
  for (int first = 0; first < counts.channels; first += static_cast<int>(blockDim.x)) {
    const int channel = first + static_cast<int>(threadIdx.x);
    total += __syncthreads_count(channel < counts.channels && counts.core_count(0, channel) != 0);
  }
  if (threadIdx.x == 0) *fired = total;
}

}  // namespace

Choice choose_by_silence(Context& context, const DeviceCounts& counts, int most_fired) {
  int* fired = context.arena().allocate<int>(1);
  count_fired_kernel<<<1, 1024, 0, cuda::stream_of(context)>>>(counts, fired);
  cuda::check_launch("spike_matmul: silence");
  return {fired, most_fired};
}

void multiply_fired(Context& context, const DeviceCounts& counts,
                    std::span<const SpikeMatmulTarget> targets, const Choice& choice) {
  const Problem p{
      device_targets(targets,
                     [](const DeviceWeight& w) { return cuda::ceil_divide(w.rows, kRows); }),
      counts, choice, std::min(counts.groups, kMostGroups)};
  cuda::allow_shared_memory(context, events_kernel, Shared::bytes(kMostGroups));
  events_kernel<<<static_cast<unsigned>(p.targets.first_piece[p.targets.count]), kThreads,
                  static_cast<size_t>(Shared::bytes(p.waiting)), cuda::stream_of(context)>>>(p);
  cuda::check_launch("spike_matmul: events");
}

}  // namespace spb::spike
