// Products of tiles on Hopper: two warpgroups multiply 64 rows of weights each by 192 tokens, while
// one thread of a third has the copy engine fetch what comes next. Weights are the first operand,
// so that a thread needs the scales of two rows only.
//
// Blocks stay and take one piece of work after another. Two of them, a cluster, have the same
// tokens and neighbouring rows: each fetches half of the counts for both. While one warpgroup turns
// its sums into floats, the other keeps the tensor cores busy.
#include <algorithm>
#include <limits>

#include "core/cuda/bulk_copy.cuh"
#include "core/cuda/pack.cuh"
#include "core/cuda/wgmma_bytes.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kConsumers = 2;
constexpr int kThreads = kGroupThreads * (kConsumers + 1);
constexpr int kCluster = 2;
constexpr uint16_t kWholeCluster = (1 << kCluster) - 1;
constexpr int kStages = 4;
// Together what the threads of a block start with: 168 each.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
constexpr int kGroupOutputs = kTileOutputs / kConsumers;
constexpr int kShareBytes = kCountBytes / kCluster;
constexpr int kBlocks = kTileTokens / 8;  // of eight tokens
constexpr int kStagingStride = 144;       // bytes: a row of 64 bf16, without bank conflicts
constexpr int kWidth =
    16;  // clusters side by side in rows of weights, for the sake of the L2 cache

struct Shared {
  signed char weights[kStages][kWeightBytes];
  signed char counts[kStages][kCountBytes];
  unsigned char staging[kConsumers][kTileTokens * kStagingStride];
  cuda::Barrier full[kStages];
  cuda::Barrier empty[kStages];
};

struct Problem {
  DeviceTargets targets;  // pieces are pairs of tiles of weights times tiles of counts
  CountTiles tiles;
  const float* thresholds;
  int64_t tokens;
  int pieces;
};

// What a block works on.
struct Piece {
  int target;
  int weight_tile;
  int count_tile;
};

__device__ Piece piece_at(const Problem& p, int index, int rank) {
  Piece piece;
  piece.target = p.targets.target_of(index);
  const auto before = static_cast<int>(p.targets.first_piece[piece.target]);
  const auto end = static_cast<int>(p.targets.first_piece[piece.target + 1]);
  const int pairs = (end - before) / p.tiles.tiles;
  const int band = (index - before) / (kWidth * p.tiles.tiles);
  const int width = min(pairs - band * kWidth, kWidth);
  const int left = index - before - band * kWidth * p.tiles.tiles;
  piece.weight_tile = (band * kWidth + left % width) * kCluster + rank;
  piece.count_tile = left / width;
  return piece;
}

// The place in the ring of stages; the same in the threads that fill and empty it.
struct Ring {
  int stage = 0;
  int parity = 0;

  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// What a thread follows along the groups of a piece: entries of the two indices of digits.
struct DigitsAlong {
  const int32_t* weights;  // or nullptr
  const int32_t* counts;

  __device__ DigitsAlong(const Problem& p, const Piece& piece)
      : weights(p.targets.weights[piece.target].digit_index), counts(p.tiles.digit_index) {
    if (weights != nullptr) weights += int64_t{piece.weight_tile} * p.tiles.groups;
    counts += int64_t{piece.count_tile} * p.tiles.groups;
  }
  __device__ int32_t of_weights(int group) const {
    return weights == nullptr ? -1 : weights[group];
  }
  __device__ int32_t of_counts(int group) const { return counts[group]; }
};

__device__ const signed char* tile_of(const signed char* core, const signed char* digits,
                                      int32_t entry, int64_t index, int which, int bytes) {
  return which == 0 ? core + index * bytes : digits + (int64_t{entry / 2} + which - 1) * bytes;
}

// The copying thread.
__device__ void produce(Shared& shared, const Problem& p, int first, int step, int rank) {
  Ring ring;
  for (int index = first; index < p.pieces; index += step) {
    const Piece piece = piece_at(p, index, rank);
    const DeviceWeight& w = p.targets.weights[piece.target];
    const DigitsAlong along(p, piece);
    for (int g = 0; g < w.groups; ++g) {
      const int32_t weight_digits = along.of_weights(g);
      const int32_t count_digits = along.of_counts(g);
      // As many steps in both blocks of the cluster: a pair of tiles of weights has alike digits.
      for_each_product(digit_tiles(weight_digits), digit_tiles(count_digits),
                       [&](int weights, int counts, bool) {
                         cuda::wait_for(&shared.empty[ring.stage], ring.parity ^ 1);
                         cuda::Barrier* full = &shared.full[ring.stage];
                         cuda::expect_bytes(full, kWeightBytes + kCountBytes);
                         cuda::copy_bulk(shared.weights[ring.stage],
                                         tile_of(w.codes, w.digits, weight_digits,
                                                 int64_t{piece.weight_tile} * w.groups + g, weights,
                                                 kWeightBytes),
                                         kWeightBytes, full);
                         const int share = rank * kShareBytes;
                         cuda::copy_bulk_to(kWholeCluster, shared.counts[ring.stage] + share,
                                            tile_of(p.tiles.core, p.tiles.digits, count_digits,
                                                    int64_t{piece.count_tile} * w.groups + g,
                                                    counts, kCountBytes) +
                                                share,
                                            kShareBytes, full);
                         ring.advance();
                       });
    }
  }
}

using Products = int[kBlocks][4];
using Sums = float[kBlocks][4];

// One pair of tiles: products = or += theirs.
__device__ void multiply(Shared& shared, Ring& ring, int group, bool accumulate, bool elected,
                         Products& products) {
  cuda::wait_for(&shared.full[ring.stage], ring.parity);
  const uint64_t w =
      cuda::describe_tile(shared.weights[ring.stage] + group * kGroupOutputs * 128, 0);
  const uint64_t s = cuda::describe_tile(shared.counts[ring.stage], 0);
  cuda::begin_products();
#pragma unroll
  for (int step = 0; step < 4; ++step) {  // 32 bytes each
    cuda::multiply_bytes_64x192(products, w + step * 2, s + step * 2, accumulate || step > 0);
  }
  cuda::finish_products();
  cuda::settle(products);
  if (elected) {
#pragma unroll
    for (int block = 0; block < kCluster; ++block) {
      cuda::arrive_at(&shared.empty[ring.stage], block);
    }
  }
  ring.advance();
}

__device__ void move_up(Products& products) {
#pragma unroll
  for (int i = 0; i < kBlocks * 4; ++i) products[i / 4][i % 4] <<= 8;
}

// sums += scale * products
template <bool kSmall>
__device__ void add_scaled(const Products& products, const float (&scales)[2], Sums& sums) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float exact = kSmall ? small_sum(products[j][i]) : __int2float_rn(products[j][i]);
      sums[j][i] = __fmaf_rn(exact, scales[i / 2], sums[j][i]);
    }
  }
}

// The results of a piece, from its sums. Thread-wise: eight floats of 8 threads are neighbours.
__device__ void store_each(const Problem& p, const Piece& piece, int row, int lane, Sums& sums) {
  const DeviceOutput& out = p.targets.outputs[piece.target];
  const int64_t first = int64_t{piece.weight_tile} * kTileOutputs + row;
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t token = int64_t{piece.count_tile} * kTileTokens + j * 8 + lane % 4 * 2 + i % 2;
      const int64_t n = first + i / 2 * 8;
      if (token >= p.tokens || n >= p.targets.weights[piece.target].rows) continue;
      out.store(token, n, out.result(n, p.thresholds[token], sums[j][i]));
    }
  }
}

// bf16 by way of shared memory, so that whole lines are written.
__device__ void store_staged(const Problem& p, const Piece& piece, unsigned char* staging,
                             int group, int thread, Sums& sums) {
  const DeviceOutput& out = p.targets.outputs[piece.target];
  const int64_t rows = p.targets.weights[piece.target].rows;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int64_t first = int64_t{piece.weight_tile} * kTileOutputs + group * kGroupOutputs;
  const int64_t token_begin = int64_t{piece.count_tile} * kTileTokens;
  float biases[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t n = first + warp * 16 + lane / 4 + half * 8;
    biases[half] = out.bias == nullptr || n >= rows ? 0.0f : out.bias[n];
  }
  unsigned char* row =
      staging + (lane / 16 * 8 + lane % 8) * kStagingStride + (warp * 16 + lane / 8 % 2 * 8) * 2;
#pragma unroll
  for (int j = 0; j < kBlocks; j += 2) {
    uint32_t words[4];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int64_t token = token_begin + (j + k) * 8 + lane % 4 * 2;
      const float v0 = token < p.tokens ? p.thresholds[token] : 0.0f;
      const float v1 = token + 1 < p.tokens ? p.thresholds[token + 1] : 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        words[k * 2 + half] =
            cuda::pack_bf16(__fmaf_rn(v0, sums[j + k][half * 2], biases[half]),
                            __fmaf_rn(v1, sums[j + k][half * 2 + 1], biases[half]));
      }
    }
    cuda::store_matrices_transposed(row + j * 8 * kStagingStride, words);
  }
  group == 0 ? cuda::meet_group<1>() : cuda::meet_group<2>();
  constexpr int kRowPieces = kGroupOutputs * 2 / 16;
  auto* y = reinterpret_cast<__nv_bfloat16*>(out.y);
#pragma unroll 4
  for (int i = thread; i < kTileTokens * kRowPieces; i += kGroupThreads) {
    const int64_t token = token_begin + i / kRowPieces;
    const int64_t n = first + i % kRowPieces * 8;
    if (token >= p.tokens || n >= rows) continue;
    const auto piece_bytes = cuda::Pack<unsigned char, 16>::load(
        staging + i / kRowPieces * kStagingStride + i % kRowPieces * 16);
    piece_bytes.store(reinterpret_cast<unsigned char*>(y + token * out.stride + n));
  }
  group == 0 ? cuda::meet_group<1>() : cuda::meet_group<2>();
}

// The sums of a piece over its groups. What the next group needs is asked for a group ahead.
__device__ void add_groups(Shared& shared, const Problem& p, const Piece& piece, Ring& ring,
                           int group, int row, int lane, Sums& sums) {
  const int groups = p.tiles.groups;
  const float* scales = p.targets.weights[piece.target].scales +
                        int64_t{piece.weight_tile} * groups * kTileOutputs + row;
  const DigitsAlong along(p, piece);
  float next_scales[2] = {scales[0], scales[8]};
  int next_tiles[2] = {digit_tiles(along.of_weights(0)), digit_tiles(along.of_counts(0))};
  for (int g = 0; g < groups; ++g) {
    const float own_scales[2] = {next_scales[0], next_scales[1]};
    const int tiles[2] = {next_tiles[0], next_tiles[1]};
    if (g + 1 < groups) {
      scales += kTileOutputs;
      next_scales[0] = scales[0];
      next_scales[1] = scales[8];
      next_tiles[0] = digit_tiles(along.of_weights(g + 1));
      next_tiles[1] = digit_tiles(along.of_counts(g + 1));
    }
    Products products;
    if (tiles[0] + tiles[1] == 2) {
      multiply(shared, ring, group, false, lane == 0, products);
      add_scaled<true>(products, own_scales, sums);
      continue;
    }
    bool begun = false;
    for_each_product(tiles[0], tiles[1], [&](int, int, bool shift) {
      if (shift) move_up(products);
      multiply(shared, ring, group, begun, lane == 0, products);
      begun = true;
    });
    add_scaled<false>(products, own_scales, sums);
  }
}

// Whether rows of y can be written 16 bytes at a time.
__device__ bool whole_pieces(const DeviceOutput& out, int64_t rows) {
  return out.bf16 && rows % 8 == 0 && out.stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(out.y) % 16 == 0;
}

// A multiplying warpgroup.
__device__ void consume(Shared& shared, const Problem& p, int first, int step, int rank, int group,
                        int thread) {
  const int lane = thread % 32;
  const int row = group * kGroupOutputs + thread / 32 * 16 + lane / 4;  // of the tile; and row + 8
  Ring ring;
  for (int index = first; index < p.pieces; index += step) {
    const Piece piece = piece_at(p, index, rank);
    Sums sums = {};
    add_groups(shared, p, piece, ring, group, row, lane, sums);
    if (whole_pieces(p.targets.outputs[piece.target], p.targets.weights[piece.target].rows)) {
      store_staged(p, piece, shared.staging[group], group, thread, sums);
    } else {
      store_each(p, piece, row, lane, sums);
    }
  }
}

// Launched in clusters of kCluster blocks.
__global__ void __launch_bounds__(kThreads, 1)
    warpgroup_tiles_kernel(const __grid_constant__ Problem p) {
  extern __shared__ __align__(1024) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared*>(storage);
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int rank = static_cast<int>(blockIdx.x) % kCluster;
  const int first = static_cast<int>(blockIdx.x) / kCluster;
  const int step = static_cast<int>(gridDim.x) / kCluster;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      cuda::start_barrier(&shared.full[stage], 1);
      // A thread of every multiplying warp of the cluster.
      cuda::start_barrier(&shared.empty[stage], kCluster * kConsumers * 4);
    }
    cuda::publish_barriers();
  }
  __syncthreads();
  cuda::meet_cluster();
  if (group == kConsumers) {
    cuda::give_registers<kProducerRegisters>();
    if (thread == 0) produce(shared, p, first, step, rank);
  } else {
    cuda::take_registers<kConsumerRegisters>();
    consume(shared, p, first, step, rank, group, thread);
  }
  // The other block may still copy to this one, or tell it of a stage.
  __syncthreads();
  cuda::meet_cluster();
}

}  // namespace

void multiply_warpgroup_tiles(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                              std::span<const SpikeMatmulTarget> targets) {
  Problem p{device_targets(targets,
                           [&](const DeviceWeight& w) {
                             return cuda::ceil_divide(w.rows, kTileOutputs * kCluster) *
                                    tiles.tiles;
                           }),
            tiles, counts.thresholds, counts.rows, 0};
  const int64_t pieces = p.targets.first_piece[p.targets.count];
  check(pieces <= std::numeric_limits<int>::max(),
        "spike_matmul: expected less than 2^31 tiles, got {}", pieces);
  p.pieces = static_cast<int>(pieces);
  constexpr auto kBytes = static_cast<int>(sizeof(Shared));
  cuda::allow_shared_memory(warpgroup_tiles_kernel, kBytes);
  const int64_t clusters = std::min<int64_t>(pieces, context.stream().multiprocessors() / kCluster);
  cuda::launch_clusters(context, "spike_matmul", clusters * kCluster, kCluster, kThreads, kBytes,
                        warpgroup_tiles_kernel, p);
}

}  // namespace spb::spike
