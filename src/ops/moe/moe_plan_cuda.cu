// The plan on a CUDA device: a stable counting sort, in which nothing depends on the order in which
// threads run. Blocks take the choices in parts, one after another, and so do the warps of a block.
// Few choices are one block's work; otherwise blocks are counted first, by a kernel of its own.
#include <algorithm>

#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {
namespace {

using cuda::Rows;

constexpr int kMaxWarps = 32;
constexpr int64_t kMaxExperts = 8192;
// Counts that fit into the shared memory of every card, with room for those of all experts.
constexpr int64_t kMaxCounts = 24576;
constexpr int64_t kBlockChoices = 2048;
constexpr int64_t kMaxBlocks = 64;

struct Problem {
  Rows<const int> experts;
  int choices;
  int per_token;
  int num_experts;
  int64_t capacity;
  int64_t align;
  int64_t rows;          // of token_of
  const uint8_t* stays;  // per choice; nullptr: the first ones of an expert do
  int* block_counts;     // [blocks, E] of several blocks
};

struct Plan {
  int64_t* offsets;
  int64_t* token_of;
  int64_t* row_of;
  int64_t* assigned;  // nullptr: they are known
  int64_t* dropped;
};

// The expert of a choice, or -1 where it is out of range, dropped before, or there is no choice.
__device__ int expert_of(const Problem& p, int choice) {
  if (choice >= p.choices || (p.stays != nullptr && p.stays[choice] == 0)) return -1;
  const int e = p.experts.row(choice / p.per_token)[choice % p.per_token];
  return e >= 0 && e < p.num_experts ? e : -1;
}

// visit(choice, expert, place among those of the expert) for the choices [begin, end) of a warp, in
// their order; `counts` are those before.
template <typename Visit>
__device__ void place_in_order(const Problem& p, int begin, int end, int* counts, Visit visit) {
  constexpr int kAhead = 4;  // reads under way at once
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  for (int first = begin; first < end; first += kAhead * cuda::kWarpSize) {
    int experts[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int choice = first + i * cuda::kWarpSize + lane;
      experts[i] = choice < end ? expert_of(p, choice) : -1;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int choice = first + i * cuda::kWarpSize + lane;
      const unsigned alike = __match_any_sync(cuda::kFullWarp, experts[i]);
      const int place = __popc(alike & ((1u << lane) - 1));
      const int base = experts[i] >= 0 ? counts[experts[i]] : 0;
      __syncwarp();
      if (experts[i] >= 0 && place == 0) counts[experts[i]] = base + __popc(alike);
      __syncwarp();
      if (choice < end) visit(choice, experts[i], base + place);
    }
  }
}

// The choices [begin, end) that part `index` of `parts` takes of those of a larger one.
struct Range {
  int begin;
  int end;

  __device__ Range part(int index, int parts) const {
    const int size = (end - begin + parts - 1) / parts;
    const int first = min(begin + size * index, end);
    return {first, min(first + size, end)};
  }
};

__device__ Range range_of_block(const Problem& p) {
  return Range{0, p.choices}.part(static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
}

__device__ void forget_tokens(const Problem& p, const Plan& plan) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < p.rows; row += step) {
    plan.token_of[row] = -1;
  }
}

// Sets `count` numbers to 0, by all threads.
__device__ void clear(int* numbers, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    numbers[i] = 0;
  }
  __syncthreads();
}

__global__ void count_kernel(const __grid_constant__ Problem p, const __grid_constant__ Plan plan) {
  extern __shared__ int storage[];
  cuda::let_next_begin();
  clear(storage, p.num_experts);
  cuda::wait_for_earlier();
  forget_tokens(p, plan);
  const Range own = range_of_block(p);
  const auto threads = static_cast<int>(blockDim.x);
  for (int choice = own.begin + static_cast<int>(threadIdx.x); choice < own.end;
       choice += threads) {
    const int expert = expert_of(p, choice);
    if (expert >= 0) atomicAdd(&storage[expert], 1);
  }
  __syncthreads();
  int* counts = p.block_counts + int64_t{blockIdx.x} * p.num_experts;
  for (int e = static_cast<int>(threadIdx.x); e < p.num_experts; e += threads) {
    counts[e] = storage[e];
  }
}

// Counts of each warp -> counts of what comes before it; totals of all.
__device__ void add_up(const Problem& p, int* counts, int* totals, int warps) {
  const auto blocks = static_cast<int>(gridDim.x);
  const auto block = static_cast<int>(blockIdx.x);
  for (int e = static_cast<int>(threadIdx.x); e < p.num_experts;
       e += static_cast<int>(blockDim.x)) {
    int total = 0;
    int before = 0;
    for (int b = 0; b < blocks && blocks > 1; ++b) {
      const int count = p.block_counts[int64_t{b} * p.num_experts + e];
      before += b < block ? count : 0;
      total += count;
    }
    for (int w = 0; w < warps; ++w) {
      const int count = counts[w * p.num_experts + e];
      counts[w * p.num_experts + e] = before;
      before += count;
    }
    totals[e] = blocks > 1 ? total : before;
  }
}

// offsets from the counts of all experts, by one warp.
__device__ void add_offsets(const Problem& p, const int* totals, int* offsets) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto align = static_cast<int>(p.align);
  int sum = 0;
  for (int first = 0; first < p.num_experts; first += cuda::kWarpSize) {
    const int e = first + lane;
    const int count = e < p.num_experts ? min(totals[e], static_cast<int>(p.capacity)) : 0;
    int end = (count + align - 1) / align * align;
    for (int distance = 1; distance < cuda::kWarpSize; distance *= 2) {
      const int other = __shfl_up_sync(cuda::kFullWarp, end, distance);
      if (lane >= distance) end += other;
    }
    if (e < p.num_experts) offsets[e + 1] = sum + end;
    sum += __shfl_sync(cuda::kFullWarp, end, cuda::kWarpSize - 1);
  }
  if (lane == 0) offsets[0] = 0;
}

// What every block knows alike.
__device__ void write_loads(const Problem& p, const Plan& plan, const int* totals,
                            const int* offsets) {
  for (int e = static_cast<int>(threadIdx.x); e <= p.num_experts;
       e += static_cast<int>(blockDim.x)) {
    plan.offsets[e] = offsets[e];
    if (plan.assigned == nullptr || e == p.num_experts) continue;
    plan.assigned[e] = totals[e];
    plan.dropped[e] = max(int64_t{totals[e]} - p.capacity, int64_t{0});
  }
}

__global__ void plan_kernel(const __grid_constant__ Problem p, const __grid_constant__ Plan plan) {
  extern __shared__ int storage[];
  cuda::let_next_begin();
  const int warps = static_cast<int>(blockDim.x) / cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  int* counts = storage + warp * p.num_experts;
  int* totals = storage + warps * p.num_experts;
  int* offsets = totals + p.num_experts;
  clear(storage, warps * p.num_experts);
  cuda::wait_for_earlier();
  if (gridDim.x == 1) forget_tokens(p, plan);
  const Range own = range_of_block(p).part(warp, warps);
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  for (int choice = own.begin + lane; choice < own.end; choice += cuda::kWarpSize) {
    const int expert = expert_of(p, choice);
    if (expert >= 0) atomicAdd(&counts[expert], 1);
  }
  __syncthreads();
  add_up(p, storage, totals, warps);
  __syncthreads();
  if (warp == 0) add_offsets(p, totals, offsets);
  __syncthreads();
  if (blockIdx.x == 0) write_loads(p, plan, totals, offsets);
  place_in_order(p, own.begin, own.end, counts, [&](int choice, int expert, int place) {
    const bool stays = expert >= 0 && place < p.capacity;
    const int64_t row = stays ? offsets[expert] + place : -1;
    plan.row_of[choice] = row;
    if (stays) plan.token_of[row] = choice / p.per_token;
  });
}

__device__ bool more_probable(float a, int choice_a, float b, int choice_b) {
  if (isnan(a) != isnan(b)) return isnan(b);
  if (a > b || b > a) return a > b;
  return choice_a < choice_b;
}

// Which choices are among the `capacity` most probable ones of their expert.
__global__ void rank_kernel(const __grid_constant__ Problem p, Rows<const float> probabilities,
                            uint8_t* stays) {
  const int choice = static_cast<int>(blockIdx.x);
  const int expert = expert_of(p, choice);
  const float own = probabilities.row(choice / p.per_token)[choice % p.per_token];
  int64_t ahead = 0;
  for (int first = 0; first < p.choices; first += static_cast<int>(blockDim.x)) {
    const int other = first + static_cast<int>(threadIdx.x);
    const bool counts = other < p.choices && expert_of(p, other) == expert &&
                        more_probable(probabilities.row(other / p.per_token)[other % p.per_token],
                                      other, own, choice);
    ahead += __syncthreads_count(counts);
  }
  if (threadIdx.x == 0) stays[choice] = expert >= 0 && ahead < p.capacity ? 1 : 0;
}

int blocks_for(int64_t choices) {
  return static_cast<int>(std::clamp<int64_t>(choices / kBlockChoices, 1, kMaxBlocks));
}

void launch_plan(Context& context, const Problem& problem, const Plan& plan) {
  constexpr auto kInt = static_cast<int64_t>(sizeof(int));
  const int64_t experts = problem.num_experts;
  const int blocks = blocks_for(problem.choices);
  const int64_t wanted =
      cuda::ceil_divide(cuda::ceil_divide(problem.choices, blocks), cuda::kWarpSize);
  const int64_t warps = std::clamp<int64_t>(std::min(wanted, kMaxCounts / experts), 1, kMaxWarps);
  const auto threads = static_cast<int>(warps * cuda::kWarpSize);
  const int64_t bytes = ((warps + 2) * experts + 1) * kInt;
  if (bytes > 48 << 10) cuda::allow_shared_memory(context, plan_kernel, static_cast<int>(bytes));
  const dim3 grid(static_cast<unsigned>(blocks));
  if (blocks > 1) {
    cuda::launch_early(context, "moe_plan: counting", grid, threads,
                       static_cast<size_t>(experts * kInt), count_kernel, problem, plan);
  }
  cuda::launch_early(context, "moe_plan", grid, threads, static_cast<size_t>(bytes), plan_kernel,
                     problem, plan);
}

std::span<const int64_t> view(const int64_t* values, int64_t count) {
  return {values, static_cast<size_t>(count)};
}

}  // namespace

MoePlan moe_plan_cuda(Context& context, const MoePlanArgs& args, int64_t capacity) {
  constexpr unsigned kRankThreads = 256;
  check(args.num_experts <= kMaxExperts,
        "moe_plan: number of experts: expected at most {} on a CUDA device, got {}", kMaxExperts,
        args.num_experts);
  Arena& arena = context.arena();
  const Shape& shape = args.choices.experts.shape();
  const int64_t choices = shape.elements();
  // So that their numbers, and those of rows with the padding of all experts, fit into an int.
  check(choices < int64_t{1} << 30, "moe_plan: choices: expected fewer than 2^30, got {}", choices);
  const int64_t experts = args.num_experts;
  const int64_t most = std::min(choices, experts * capacity);
  const int64_t rows = most + std::min(most, experts) * (args.align - 1);
  Problem problem{cuda::rows_of<int>(ConstTensorView(args.choices.experts)),
                  static_cast<int>(choices),
                  static_cast<int>(shape[1]),
                  static_cast<int>(experts),
                  capacity,
                  args.align,
                  rows,
                  nullptr,
                  arena.allocate<int>(blocks_for(choices) * experts)};
  Plan plan{arena.allocate<int64_t>(experts + 1), arena.allocate<int64_t>(rows),
            arena.allocate<int64_t>(choices), arena.allocate<int64_t>(experts),
            arena.allocate<int64_t>(experts)};
  launch_plan(context, problem, plan);
  if (capacity < choices && args.drop_rule == DropRule::kByProbability) {
    auto* stays = arena.allocate<uint8_t>(choices);
    rank_kernel<<<static_cast<unsigned>(choices), kRankThreads, 0, cuda::stream_of(context)>>>(
        problem, cuda::rows_of<float>(ConstTensorView(args.choices.probabilities)), stays);
    cuda::check_launch("moe_plan: ranking");
    problem.stays = stays;
    Plan again = plan;
    again.assigned = nullptr;
    launch_plan(context, problem, again);
  }
  return {.num_tokens = shape[0],
          .experts_per_token = shape[1],
          .num_rows = rows,
          .offsets = view(plan.offsets, experts + 1),
          .token_of = view(plan.token_of, rows),
          .row_of = view(plan.row_of, choices),
          .assigned = view(plan.assigned, experts),
          .dropped = view(plan.dropped, experts)};
}

}  // namespace spb::ops
