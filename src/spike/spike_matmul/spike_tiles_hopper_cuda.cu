// Products of tiles on Hopper: three warpgroups multiply 64 rows of weights each by 128 tokens,
// while one warp of a fourth has the copy engine fetch what comes next. Weights are the first
// operand, so that a thread needs the scales of two rows only.
//
// While one warpgroup turns the sums of a group of channels into floats, the others keep the tensor
// cores busy. Issue slots are scarce: two instructions for each sum of 128 products fill half of
// them, so the loop over groups without digits has nothing else that can be left out. Blocks stay
// and take one piece of work after another. Those of a cluster have the same weights and
// neighbouring tokens: each fetches its share of the weights for all.
#include <algorithm>
#include <limits>

#include "core/cuda/pack.cuh"
#include "core/cuda/wgmma_bytes.cuh"
#include "ops/swiglu/swiglu.cuh"
#include "spike/spike_matmul/spike_tiles_hopper.cuh"

namespace spb::spike {
namespace {

using namespace warpgroups;

using Products = int[kBlocks][4];
using Sums = float[kBlocks][4];

// Barriers of the block beside barrier 0, for the meetings of each group.
__device__ int meeting_of(int group) { return 1 + group; }

// Tiles of stage 0 as products want them.
struct Tiles {
  uint64_t weights;
  uint64_t counts;
};

// A stage is free for new tiles, in all blocks of the cluster. Every lane that read scales arrives,
// which costs nothing that could be measured: tools that look for races do not follow a lane that
// arrives for its warp.
__device__ void release(Shared& shared, int stage) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int rank = static_cast<int>(blockIdx.x) % kClusterBlocks;
  cuda::arrive(&shared.empty[stage]);
  if (lane < kClusterBlocks && lane != rank) cuda::arrive_at(&shared.empty[stage], lane);
}

// products = or += those of a stage, which is free for new tiles then.
__device__ void multiply(Shared& shared, const Tiles& tiles, int stage, int group, bool accumulate,
                         Products& products) {
  const uint64_t w = tiles.weights + stage * (kWeightBytes / 16);
  const uint64_t s = tiles.counts + stage * (kBlockCountBytes / 16);
  cuda::begin_products();
#pragma unroll
  for (int step = 0; step < 4; ++step) {  // 32 bytes each
    cuda::multiply_bytes_64x128(products, w + step * 2, s + step * 2, accumulate || step > 0);
  }
  cuda::commit_products();
  cuda::wait_for_products<0>();
  cuda::settle(products);
  release(shared, stage);
}

__device__ void move_up(Products& products) {
#pragma unroll
  for (int i = 0; i < kBlocks * 4; ++i) products[i / 4][i % 4] <<= 8;
}

// sums += scale * products.
__device__ void add_scaled(const Products& products, const float (&scales)[2], Sums& sums) {
#pragma unroll
  for (int i = 0; i < kBlocks * 4; ++i) {
    float& sum = sums[i / 4][i % 4];
    sum = __fmaf_rn(static_cast<float>(products[i / 4][i % 4]), scales[i % 4 / 2], sum);
  }
}

// The sums of a piece over its groups; `row` and the eighth after it are the thread's. In a plain
// piece no group has digits.
template <bool kPlainPiece>
__device__ void add_groups(Shared& shared, const Tiles& tiles, int groups, int group, int row,
                           Turn& turn, Sums& sums) {
  Products products;
#pragma unroll 1
  for (int left = groups; left > 0;) {
    cuda::wait_for(&shared.full[turn.stage], turn.round & 1);
    const int purpose = kPlainPiece ? kLast : shared.purposes[turn.stage];
    const float scales[2] = {shared.scales[turn.stage][row], shared.scales[turn.stage][row + 8]};
    if ((purpose & kShift) != 0) move_up(products);
    multiply(shared, tiles, turn.stage, group, (purpose & kAccumulate) != 0, products);
    turn.next();
    if ((purpose & kLast) == 0) continue;
    add_scaled(products, scales, sums);
    --left;
  }
}

// First row and token of what a warpgroup writes.
struct Place {
  int64_t row;
  int64_t token;
};

// The results of a piece, from its sums. Thread-wise: eight floats of 8 threads are neighbours.
__device__ void store_each(const Problem& p, int target, const Place& place, int thread,
                           const Sums& sums) {
  const DeviceOutput& out = p.targets.outputs[target];
  const DeviceWeight& w = p.targets.weights[target];
  const int lane = thread % cuda::kWarpSize;
  const int64_t first = place.row + thread / cuda::kWarpSize * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t token = place.token + j * 8 + lane % 4 * 2 + i % 2;
      const int64_t n = first + i / 2 * 8;
      if (token >= p.tokens || n >= w.rows) continue;
      if (out.accumulate && is_far(p.tiles, w, token, n)) continue;
      out.store(token, n, out.result(n, p.thresholds[token], sums[j][i]));
    }
  }
}

// Makes -0 of staged results that multiply_far is to add: whatever -0 is added to stays as it is.
__device__ void leave_out_far(const Problem& p, int target, const Place& place,
                              unsigned char* staging, int thread) {
  static_assert(kGroupThreads == kBlockTokens);
  constexpr uint16_t kMinusZero = 0x8000;  // in bf16
  const DeviceWeight& w = p.targets.weights[target];
  const int64_t token = place.token + thread;
  if (token >= p.tokens) return;
#pragma unroll 1
  for (int n = 0; n < kGroupOutputs && place.row + n < w.rows; ++n) {
    if (!is_far(p.tiles, w, token, place.row + n)) continue;
    reinterpret_cast<uint16_t*>(staging + cuda::swizzled(thread, n / 8))[n % 8] = kMinusZero;
  }
}

// swiglu of two gates and what they open, each pair two bf16.
__device__ uint32_t gated_pair(uint32_t gate, uint32_t up) {
  const float2 g = cuda::unpack_bf16(gate);
  const float2 u = cuda::unpack_bf16(up);
  return cuda::pack_bf16(ops::activate<__nv_bfloat16>(g.x) * u.x,
                         ops::activate<__nv_bfloat16>(g.y) * u.y);
}

// bf16 by way of shared memory, from where the copy engine stores or adds them. Those of a gate
// wait there for the ones of up, which the same threads have.
__device__ void store_staged(const Problem& p, int target, const Place& place,
                             unsigned char* staging, const float* thresholds, int meeting,
                             int thread, const Sums& sums) {
  const DeviceOutput& out = p.targets.outputs[target];
  const DeviceWeight& w = p.targets.weights[target];
  const int64_t rows = w.rows;
  const bool is_gate = p.gated && target == 0;
  const bool is_up = p.gated && target == 1;
  const bool some_far = out.accumulate && (w.far_rows != nullptr || *p.tiles.far_count != 0);
  const int lane = thread % cuda::kWarpSize;
  const int warp = thread / cuda::kWarpSize;
  float biases[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t n = place.row + warp * 16 + lane / 4 + half * 8;
    biases[half] = out.bias == nullptr || n >= rows ? 0.0f : out.bias[n];
  }
  // The thresholds of all threads are there, and what was stored last has been read.
  cuda::wait_for_copies<0>();
  if (thread == 0) cuda::wait_for_stores();
  cuda::meet_group(meeting);
  unsigned char* row = staging + cuda::swizzled(lane / 16 * 8 + lane % 8, warp * 2 + lane / 8 % 2);
#pragma unroll
  for (int j = 0; j < kBlocks; j += 2) {
    uint32_t words[4];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float* v = thresholds + (j + k) * 8 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        words[k * 2 + half] =
            cuda::pack_bf16(__fmaf_rn(v[0], sums[j + k][half * 2], biases[half]),
                            __fmaf_rn(v[1], sums[j + k][half * 2 + 1], biases[half]));
      }
    }
    if (is_up) {
      uint32_t gates[4];
      cuda::load_matrices_transposed(gates, row + j * 8 * 128);
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = gated_pair(gates[i], words[i]);
    }
    cuda::store_matrices_transposed(row + j * 8 * 128, words);
  }
  if (is_gate) return;
  if (some_far) {
    cuda::meet_group(meeting);
    leave_out_far(p, target, place, staging, thread);
  }
  cuda::publish_writes();
  cuda::meet_group(meeting);
  if (thread != 0) return;
  const auto token = static_cast<int>(place.token);
  const auto first = static_cast<int>(place.row);
  if (out.accumulate) {
    cuda::add_tile(&p.outputs[target], token, first, staging);
  } else {
    cuda::store_tile(&p.outputs[target], token, first, staging);
  }
}

// A multiplying warpgroup.
__device__ void consume(Shared& shared, const Problem& p, int first, int step, int rank,
                        int group) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int row = group * kGroupOutputs + thread / 32 * 16 + thread % 32 / 4;
  const Tiles tiles{cuda::describe_tile(shared.weights[0] + group * kGroupOutputs * 128, 0),
                    cuda::describe_tile(shared.counts[0], 0)};
  Turn turn;
  Walk walk(p, first, step);
  for (Piece piece; walk.next(piece);) {
    const Place place{int64_t{piece.weight_tile} * kTileOutputs + group * kGroupOutputs,
                      int64_t{piece.count_tile} * kTileTokens + rank * kBlockTokens};
    // Where they will be waited for; up has the tokens of the gate.
    if (p.stored[piece.target] && !(p.gated && piece.target == 1)) {
      const int64_t token = min(place.token + thread, p.tokens - 1);
      cuda::copy_async<4>(&shared.thresholds[group][thread], p.thresholds + token, true);
      cuda::commit_copies();
    }
    Sums sums = {};
    cuda::wait_for(&shared.full[turn.stage], turn.round & 1);
    if ((shared.purposes[turn.stage] & kPlain) != 0) {
      add_groups<true>(shared, tiles, p.tiles.groups, group, row, turn, sums);
    } else {
      add_groups<false>(shared, tiles, p.tiles.groups, group, row, turn, sums);
    }
    if (p.stored[piece.target]) {
      store_staged(p, piece.target, place, shared.staging[group], shared.thresholds[group],
                   meeting_of(group), thread, sums);
    } else {
      store_each(p, piece.target, place, thread, sums);
    }
  }
  cuda::wait_for_stores();
}

// Launched in clusters of kClusterBlocks blocks.
__global__ void __launch_bounds__(kThreads, 1)
    warpgroup_tiles_kernel(const __grid_constant__ Problem p) {
  extern __shared__ __align__(1024) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared*>(storage);
  // The same in a whole warp, which the compiler cannot know.
  const int group = __shfl_sync(cuda::kFullWarp, static_cast<int>(threadIdx.x) / kGroupThreads, 0);
  const int rank = static_cast<int>(blockIdx.x) % kClusterBlocks;
  const int first = static_cast<int>(blockIdx.x) / kClusterBlocks;
  const int step = static_cast<int>(gridDim.x) / kClusterBlocks;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      cuda::start_barrier(&shared.full[stage], 1);
      cuda::start_barrier(&shared.empty[stage], kArrivals);
    }
    cuda::publish_barriers();
  }
  __syncthreads();
  cuda::meet_cluster();
  if (group == kConsumers) {
    cuda::give_registers<kProducerRegisters>();
    const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
    if (thread < cuda::kWarpSize) produce(shared, p, first, step, rank, thread);
  } else {
    cuda::take_registers<kConsumerRegisters>();
    consume(shared, p, first, step, rank, group);
  }
  // The other blocks may still copy to this one, or tell it of a stage.
  __syncthreads();
  cuda::meet_cluster();
}

Maps weight_maps(const SpikeWeight& weight) {
  const DeviceTiles& tiles = weight.impl().tiles;
  const auto map = [](const Buffer& from) {
    return cuda::stored_tiles_map(from.data(), from.bytes() / 128, kShareRows);
  };
  return {map(tiles.codes), map(tiles.digits.bytes() > 0 ? tiles.digits : tiles.codes)};
}

}  // namespace

void multiply_warpgroup_tiles(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                              std::span<const SpikeMatmulTarget> targets, bool gated) {
  Problem p{};
  p.targets = device_targets(targets, [&](const DeviceWeight& w) {
    return cuda::ceil_divide(w.rows, kTileOutputs) * tiles.tiles;
  });
  const int64_t pieces = p.targets.first_piece[gated ? 1 : p.targets.count];
  check(pieces <= std::numeric_limits<int>::max(),
        "spike_matmul: expected less than 2^31 tiles, got {}", pieces);
  for (size_t t = 0; t < targets.size(); ++t) {
    const TensorView& y = targets[t].y;
    p.weights[t] = weight_maps(*targets[t].weight);
    p.stored[t] = y.dtype() == DType::kBF16 && cuda::packs_fit(y, 8);
    if (p.stored[t]) {
      p.outputs[t] = cuda::tensor_map(y.data(), y.shape()[0], y.shape()[1],
                                      p.targets.outputs[t].stride, kBlockTokens);
    }
  }
  p.counts = {cuda::byte_tensor_map(tiles.core, counts.rows, counts.channels, tiles.core_stride,
                                    kBlockTokens),
              cuda::stored_tiles_map(tiles.digits, int64_t{tiles.digits_capacity} * 2 * kTileTokens,
                                     kBlockTokens)};
  p.tiles = tiles;
  p.thresholds = counts.thresholds;
  p.tokens = counts.rows;
  p.pieces = static_cast<int>(pieces);
  p.gated = gated;
  constexpr auto kBytes = static_cast<int>(sizeof(Shared));
  cuda::allow_shared_memory(context, warpgroup_tiles_kernel, kBytes);
  const int64_t resident =
      cuda::resident_clusters(context, kClusterBlocks, kThreads, kBytes, warpgroup_tiles_kernel);
  cuda::launch_clusters(context, "spike_matmul", std::min(pieces, resident) * kClusterBlocks,
                        kClusterBlocks, kThreads, kBytes, warpgroup_tiles_kernel, p);
}

}  // namespace spb::spike
