#include <cfloat>
#include <new>

#include "core/cuda/launch.cuh"
#include "core/cuda/reduce.cuh"
#include "core/transfer.h"
#include "ops/sampling/sampling_cuda.h"

namespace spb::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kPerBlock = 4 * kThreads;  // logits
constexpr int kLastThreads = 1024;       // of the block that puts the list in order
constexpr unsigned kNegative = 0x80000000u;

// Bins over the distance from the highest logit, by its exponent and five bits of its mantissa:
// about 3 % wide whatever the scale of the logits. A higher logit is never in a later bin, so all
// of a bin is better than all of the next.
constexpr int kBins = 1024;
constexpr int kMantissaShift = 18;
constexpr int kFirstBin = (127 - 16) << 5;  // distances below 2^-16 share bin 0

// Zero before and after every call, except `best`, which the first kernel's last block hands on.
struct Work {
  unsigned long long best;  // order of the highest logit, then the complement of its id
  unsigned invalid;
  unsigned scanned, measured;  // blocks that have finished
  unsigned last_bin;           // of the list
  unsigned listed;
  unsigned histogram[kBins];
  unsigned long long entries[Shortlist::kCapacity];  // id, bits of the logit
};

struct View {
  const float* logits;
  const float* bias;  // nullptr: none
  const int32_t* counts;
  int64_t count;  // of logits
  LogitPenalties penalties;

  // Products and sums of doubles are not fused here: the host's are not.
  __device__ float at(int64_t i) const {
    float x = logits[i];
    if (bias != nullptr) {
      const bool forbidden = isinf(bias[i]) || isinf(x);
      x = forbidden ? -INFINITY : clamped(__dadd_rn(x, bias[i]));
    }
    const int seen = counts == nullptr ? 0 : counts[i];
    if (seen == 0 || isinf(x)) return x;
    const double scaled =
        x > 0 ? __ddiv_rn(x, penalties.repetition) : __dmul_rn(x, penalties.repetition);
    const double often = __dmul_rn(penalties.frequency, seen);
    return clamped(__dsub_rn(__dsub_rn(scaled, often), penalties.presence));
  }

  __device__ static float clamped(double x) {
    return static_cast<float>(fmin(fmax(x, -double{FLT_MAX}), double{FLT_MAX}));
  }
};

// What one thread looks at, kThreads apart.
struct Range {
  int64_t begin;
  int64_t end;

  __device__ explicit Range(const View& view)
      : begin(int64_t{blockIdx.x} * kPerBlock + threadIdx.x),
        end(min((int64_t{blockIdx.x} + 1) * kPerBlock, view.count)) {}
};

// A number that orders as the float does.
__device__ unsigned order_of(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);  // -0 is 0
  return (bits & kNegative) != 0 ? ~bits : bits | kNegative;
}
__device__ float from_order(unsigned order) {
  return __uint_as_float((order & kNegative) != 0 ? order & ~kNegative : ~order);
}

__device__ float highest_of(const Work& work) {
  return from_order(static_cast<unsigned>(work.best >> 32));
}

__device__ int bin_of(float highest, float x) {
  const int key = static_cast<int>(__float_as_uint(highest - x) >> kMantissaShift) - kFirstBin;
  return min(max(key, 0), kBins - 1);
}

// Whether this block is the last of the grid to get here; what the others wrote is then visible.
__device__ bool last_block(unsigned* finished) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

__device__ unsigned long long warp_best(unsigned long long best) {
#pragma unroll
  for (int distance = cuda::kWarpSize / 2; distance > 0; distance /= 2) {
    const unsigned long long other = __shfl_xor_sync(cuda::kFullWarp, best, distance);
    best = other > best ? other : best;
  }
  return best;
}

// The highest logit, and whether all can be used.
__global__ void __launch_bounds__(kThreads)
    scan_kernel(const View view, Work* work, Shortlist* found, bool only_highest) {
  cuda::wait_for_earlier();
  const Range range(view);
  unsigned long long best = 0;
  bool valid = true;
  for (int64_t i = range.begin; i < range.end; i += kThreads) {
    valid = valid && view.logits[i] <= FLT_MAX;
    const unsigned long long key = static_cast<unsigned long long>(order_of(view.at(i))) << 32;
    const unsigned long long candidate = key | ~static_cast<unsigned>(i);
    best = candidate > best ? candidate : best;
  }
  best = warp_best(best);
  if (threadIdx.x % cuda::kWarpSize == 0) atomicMax(&work->best, best);
  if (!valid) atomicOr(&work->invalid, 1u);
  cuda::let_next_begin();
  if (!last_block(&work->scanned) || threadIdx.x > 0) return;
  best = atomicMax(&work->best, 0ull);
  const float highest = from_order(static_cast<unsigned>(best >> 32));
  found->valid = work->invalid == 0 && highest >= -FLT_MAX ? 1 : 0;
  found->highest = highest;
  found->highest_id = static_cast<int32_t>(~static_cast<unsigned>(best));
  work->invalid = 0;
  if (only_highest) work->best = 0;
}

__device__ double warp_sum(double value) {
#pragma unroll
  for (int distance = cuda::kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(cuda::kFullWarp, value, distance);
  }
  return value;
}

// Of the values of all threads, in thread 0, in a fixed order.
__device__ double block_sum(double value) {
  __shared__ double parts[kWarps];
  value = warp_sum(value);
  if (threadIdx.x % cuda::kWarpSize == 0) parts[threadIdx.x / cuda::kWarpSize] = value;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < kWarps; ++i) total += parts[i];
  __syncthreads();
  return total;
}

// Chooses how many bins the list takes: as few as hold `wanted` logits, but not more than fit.
// last_bin is one more than the last of them.
__device__ void choose_bins(Work* work, Shortlist* found, unsigned wanted) {
  constexpr int kEach = kBins / kThreads;
  __shared__ unsigned ends[kThreads];  // logits in the bins of the threads up to this one
  unsigned own[kEach];
  unsigned total = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    total += atomicExch(&work->histogram[threadIdx.x * kEach + static_cast<unsigned>(i)], 0u);
    own[i] = total;
  }
  ends[threadIdx.x] = total;
  __syncthreads();
  for (int distance = 1; distance < kThreads; distance *= 2) {
    const int from = static_cast<int>(threadIdx.x) - distance;
    const unsigned before = from >= 0 ? ends[from] : 0;
    __syncthreads();
    ends[threadIdx.x] += before;
    __syncthreads();
  }
  const unsigned all = ends[kThreads - 1];
  const unsigned before = ends[threadIdx.x] - total;
  if (threadIdx.x == 0) found->finite = static_cast<int32_t>(all);
  const unsigned target = min(wanted, all);
  unsigned reached = before;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const unsigned upto = before + own[i];
    if (reached < target && upto >= target) {
      const unsigned bin = threadIdx.x * kEach + static_cast<unsigned>(i);
      work->last_bin = upto <= Shortlist::kCapacity ? bin + 1 : bin;
    }
    reached = upto;
  }
}

// How many logits lie how far below the highest, and the sum of their weights.
__global__ void __launch_bounds__(kThreads)
    measure_kernel(const View view, Work* work, double* sums, Shortlist* found, double scale,
                   int wanted) {
  __shared__ unsigned histogram[kBins];
  for (unsigned i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
  __syncthreads();
  cuda::wait_for_earlier();
  const float highest = highest_of(*work);
  const Range range(view);
  double weights = 0;
  for (int64_t i = range.begin; i < range.end; i += kThreads) {
    const float x = view.at(i);
    if (!(x >= -FLT_MAX)) continue;
    atomicAdd(&histogram[bin_of(highest, x)], 1u);
    if (scale > 0) weights += exp((static_cast<double>(x) - highest) * scale);
  }
  weights = block_sum(weights);
  if (threadIdx.x == 0) sums[blockIdx.x] = weights;
  for (unsigned i = threadIdx.x; i < kBins; i += kThreads) {
    if (histogram[i] > 0) atomicAdd(&work->histogram[i], histogram[i]);
  }
  cuda::let_next_begin();
  if (!last_block(&work->measured)) return;
  double sum = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) sum += __ldcg(&sums[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) found->sum_of_weights = sum;
  choose_bins(work, found, static_cast<unsigned>(wanted));
}

// Sorts 2^n keys in shared memory.
__device__ void sort_keys(unsigned long long* keys, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int distance = size / 2; distance > 0; distance /= 2) {
      __syncthreads();
      const int i = static_cast<int>(threadIdx.x);
      const int other = i ^ distance;
      if (i >= count || other < i) continue;
      const unsigned long long a = keys[i];
      const unsigned long long b = keys[other];
      if ((a > b) == ((i & size) == 0)) {
        keys[i] = b;
        keys[other] = a;
      }
    }
  }
  __syncthreads();
}

// Lists the logits of the chosen bins in any order.
__global__ void __launch_bounds__(kThreads) list_kernel(const View view, Work* work) {
  cuda::wait_for_earlier();
  const float highest = highest_of(*work);
  const auto bins = static_cast<int>(work->last_bin);
  const Range range(view);
  for (int64_t i = range.begin; i < range.end; i += kThreads) {
    const float x = view.at(i);
    if (!(x >= -FLT_MAX) || bin_of(highest, x) >= bins) continue;
    const unsigned slot = atomicAdd(&work->listed, 1u);
    const auto id = static_cast<unsigned long long>(i);
    if (slot < Shortlist::kCapacity) work->entries[slot] = id << 32 | __float_as_uint(x);
  }
  cuda::let_next_begin();
}

// Puts the list into the order of ids, in host memory.
__global__ void __launch_bounds__(kLastThreads) order_kernel(Work* work, Shortlist* found) {
  __shared__ unsigned long long keys[Shortlist::kCapacity];
  static_assert(kLastThreads == Shortlist::kCapacity);
  cuda::wait_for_earlier();
  const auto count = static_cast<int>(min(work->listed, unsigned{Shortlist::kCapacity}));
  int padded = 1;
  while (padded < count) padded *= 2;
  const auto i = static_cast<int>(threadIdx.x);
  keys[i] = i < count ? work->entries[i] : ~0ull;
  sort_keys(keys, padded);
  if (i < count) {
    found->ids[static_cast<size_t>(i)] = static_cast<int32_t>(keys[i] >> 32);
    found->logits[static_cast<size_t>(i)] = __uint_as_float(static_cast<unsigned>(keys[i]));
  }
  if (i > 0) return;
  found->count = count;
  work->listed = 0;
  work->best = 0;
  work->last_bin = 0;
}

struct TokenCount {
  int32_t id;
  int32_t count;
};

__global__ void __launch_bounds__(kThreads)
    count_kernel(int32_t* counts, const TokenCount* changed, int count) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < count) counts[changed[i].id] = changed[i].count;
}

unsigned blocks_for(int64_t count, int per_block) {
  return static_cast<unsigned>(cuda::ceil_divide(count, per_block));
}

}  // namespace

ShortlistFinder::ShortlistFinder(const Device& device, int64_t vocab_size)
    : device_(device),
      vocab_size_(vocab_size),
      work_(static_cast<int64_t>(sizeof(Work) + sizeof(double) * blocks_for(vocab_size, kPerBlock)),
            device) {
  const cuda::DeviceScope scope(device.index);
  void* found = nullptr;
  cuda::check_cuda(
      cudaHostAlloc(&found, sizeof(Shortlist), cudaHostAllocPortable | cudaHostAllocMapped),
      "allocating host memory");
  found_ = new (found) Shortlist;
}

ShortlistFinder::~ShortlistFinder() { (void)cudaFreeHost(found_); }

void ShortlistFinder::set_bias(const std::map<int32_t, float>& bias) {
  std::vector<float> dense(static_cast<size_t>(vocab_size_));
  for (const auto& [id, value] : bias) dense[static_cast<size_t>(id)] = value;
  const int64_t bytes = vocab_size_ * static_cast<int64_t>(sizeof(float));
  if (bias_.bytes() == 0) bias_ = Buffer(bytes, device_);
  cuda::copy_to_device(device_.index, bias_.data(), dense.data(), bytes);
}

void ShortlistFinder::set_count(int32_t id, int32_t count) { changed_counts_[id] = count; }

void ShortlistFinder::send_counts(Context& context) {
  if (changed_counts_.empty()) return;
  if (counts_.bytes() == 0) {
    counts_ = Buffer(vocab_size_ * static_cast<int64_t>(sizeof(int32_t)), device_);
  }
  std::vector<TokenCount> changed;
  for (const auto& [id, count] : changed_counts_) changed.push_back({id, count});
  changed_counts_.clear();
  const Arena::Scope scope(context.arena());
  const TokenCount* sent = on_device(context, std::span<const TokenCount>(changed));
  const auto count = static_cast<int>(changed.size());
  count_kernel<<<blocks_for(count, kThreads), kThreads, 0, cuda::stream_of(context)>>>(
      counts_.as<int32_t>(), sent, count);
  cuda::check_launch("sampling");
}

const Shortlist& ShortlistFinder::find(Context& context, const ShortlistArgs& args) {
  const cuda::DeviceScope scope(device_.index);
  send_counts(context);
  const View view{args.logits, bias_.as<float>(), counts_.as<int32_t>(), vocab_size_,
                  args.penalties};
  auto* work = work_.as<Work>();
  auto* sums = reinterpret_cast<double*>(work + 1);
  const dim3 blocks(blocks_for(vocab_size_, kPerBlock));
  const bool only_highest = args.count == 0;
  cuda::launch_early(context, "sampling", blocks, kThreads, 0, scan_kernel, view, work, found_,
                     only_highest);
  if (!only_highest) {
    const double scale = args.sum ? 1.0 / args.temperature : 0.0;
    cuda::launch_early(context, "sampling", blocks, kThreads, 0, measure_kernel, view, work, sums,
                       found_, scale, args.count);
    cuda::launch_early(context, "sampling", blocks, kThreads, 0, list_kernel, view, work);
    cuda::launch_early(context, "sampling", dim3(1), kLastThreads, 0, order_kernel, work, found_);
  }
  context.stream().synchronize();
  return *found_;
}

}  // namespace spb::ops
