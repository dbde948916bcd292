// The plan on a CUDA device: a stable counting sort by one block, so that nothing depends on the
// order in which threads run. Its warps take the choices in parts, one after another.
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
constexpr int64_t kMaxCounts = 32768;

struct Problem {
  Rows<const int> experts;
  int choices;
  int per_token;
  int num_experts;
  int64_t capacity;
  int64_t align;
  int64_t rows;          // of token_of
  const uint8_t* stays;  // per choice; nullptr: the first ones of an expert do
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

// visit(choice, expert, place among those of the expert, so far counted in `counts`) for the
// choices [begin, end) of a warp, in their order.
template <typename Visit>
__device__ void count_in_order(const Problem& p, int begin, int end, int* counts, Visit visit) {
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

// offsets from the counts of all experts, by one warp.
__device__ void add_offsets(const Problem& p, const int* totals, int64_t* offsets) {
  const int lane = static_cast<int>(threadIdx.x);
  int64_t sum = 0;
  for (int first = 0; first < p.num_experts; first += cuda::kWarpSize) {
    const int e = first + lane;
    const int64_t count = e < p.num_experts ? min(int64_t{totals[e]}, p.capacity) : 0;
    int64_t end = (count + p.align - 1) / p.align * p.align;
    for (int distance = 1; distance < cuda::kWarpSize; distance *= 2) {
      const int64_t other = __shfl_up_sync(cuda::kFullWarp, end, distance);
      if (lane >= distance) end += other;
    }
    if (e < p.num_experts) offsets[e + 1] = sum + end;
    sum += __shfl_sync(cuda::kFullWarp, end, cuda::kWarpSize - 1);
  }
  if (lane == 0) offsets[0] = 0;
}

// Counts of each warp -> counts of the warps before it; totals of all.
__device__ void add_up_warps(int* counts, int* totals, int warps, int num_experts) {
  for (int e = static_cast<int>(threadIdx.x); e < num_experts; e += static_cast<int>(blockDim.x)) {
    int sum = 0;
    for (int w = 0; w < warps; ++w) {
      const int count = counts[w * num_experts + e];
      counts[w * num_experts + e] = sum;
      sum += count;
    }
    totals[e] = sum;
  }
}

__global__ void plan_kernel(const __grid_constant__ Problem p, const __grid_constant__ Plan plan) {
  extern __shared__ int storage[];
  cuda::let_next_begin();
  cuda::wait_for_earlier();
  const int warps = static_cast<int>(blockDim.x) / cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  int* counts = storage + warp * p.num_experts;
  int* totals = storage + warps * p.num_experts;
  for (int i = static_cast<int>(threadIdx.x); i < warps * p.num_experts;
       i += static_cast<int>(blockDim.x)) {
    storage[i] = 0;
  }
  for (int64_t row = threadIdx.x; row < p.rows; row += blockDim.x) plan.token_of[row] = -1;
  __syncthreads();
  const int part = (p.choices + warps - 1) / warps;
  const int begin = min(part * warp, p.choices);
  const int end = min(begin + part, p.choices);
  count_in_order(p, begin, end, counts, [](int, int, int) {});
  __syncthreads();
  add_up_warps(storage, totals, warps, p.num_experts);
  __syncthreads();
  if (warp == 0) add_offsets(p, totals, plan.offsets);
  for (int e = static_cast<int>(threadIdx.x); e < p.num_experts && plan.assigned != nullptr;
       e += static_cast<int>(blockDim.x)) {
    plan.assigned[e] = totals[e];
    plan.dropped[e] = max(int64_t{totals[e]} - p.capacity, int64_t{0});
  }
  __syncthreads();
  count_in_order(p, begin, end, counts, [&](int choice, int expert, int place) {
    const bool stays = expert >= 0 && place < p.capacity;
    const int64_t row = stays ? plan.offsets[expert] + place : -1;
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

void launch_plan(Context& context, const Problem& problem, const Plan& plan) {
  const int64_t experts = problem.num_experts;
  const int64_t wanted = cuda::ceil_divide(int64_t{problem.choices}, cuda::kWarpSize);
  const int64_t warps = std::clamp<int64_t>(std::min(wanted, kMaxCounts / experts), 1, kMaxWarps);
  const auto bytes = static_cast<int>((warps + 1) * experts * static_cast<int64_t>(sizeof(int)));
  if (bytes > 48 << 10) cuda::allow_shared_memory(plan_kernel, bytes);
  cuda::launch_early(context, "moe_plan", dim3(1), static_cast<int>(warps * cuda::kWarpSize),
                     static_cast<size_t>(bytes), plan_kernel, problem, plan);
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
  // So that their numbers, with those of a warp behind the last, fit into an int.
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
                  nullptr};
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
