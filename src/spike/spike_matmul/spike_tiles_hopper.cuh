// The parts of spike_tiles_hopper_cuda.cu that its warpgroups share: what lies in shared memory,
// which piece of work comes when, and the warp that has the copy engine fetch tiles.
#pragma once

#include <algorithm>

#include "core/cuda/bulk_copy.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/tensor_map.cuh"
#include "core/cuda/tile_stages.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike::warpgroups {

inline constexpr int kGroupThreads = 128;
inline constexpr int kConsumers = 3;
inline constexpr int kThreads = kGroupThreads * (kConsumers + 1);
inline constexpr uint16_t kWholeCluster = (1 << kClusterBlocks) - 1;
inline constexpr int kStages = 4;
// Together what the threads of a block start with: 128 each.
inline constexpr int kProducerRegisters = 56;
inline constexpr int kConsumerRegisters = 152;
inline constexpr int kGroupOutputs = kTileOutputs / kConsumers;
inline constexpr int kShareRows = kTileOutputs / kClusterBlocks;
inline constexpr int kScaleBytes = kTileOutputs * static_cast<int>(sizeof(float));
inline constexpr int kBlocks = kBlockTokens / 8;  // of eight tokens
inline constexpr int kStagingStride = 144;        // bytes: a row of 64 bf16, without bank conflicts
// Tiles of weights that pass all tokens before the next ones begin, for the sake of the L2 cache.
inline constexpr int kBand = 16;

// What the products of a stage are for: a sum of these.
inline constexpr int kAccumulate = 1;  // onto the sum of the stages before
inline constexpr int kShift = 2;       // which first moves up by 8 bits
inline constexpr int kLast = 4;        // of the group: the sum becomes a float

struct Shared {
  signed char weights[kStages][kWeightBytes];
  signed char counts[kStages][kBlockCountBytes];
  unsigned char staging[kConsumers][kBlockTokens * kStagingStride];
  float scales[kStages][kTileOutputs];
  float thresholds[kConsumers][kBlockTokens];
  int purposes[kStages];
  cuda::Barrier full[kStages];
  cuda::Barrier empty[kStages];
};

// Tiles of the core and of digits; the latter the former where there are none.
struct Maps {
  CUtensorMap core;
  CUtensorMap digits;
};

struct Problem {
  Maps weights[kMaxTargets];
  Maps counts;
  DeviceTargets targets;  // pieces are tiles of weights times tiles of counts
  CountTiles tiles;
  const float* thresholds;
  int64_t tokens;
  int pieces;
};

// What a cluster works on.
struct Piece {
  int target;
  int weight_tile;
  int count_tile;
};

__device__ inline Piece piece_at(const Problem& p, int index) {
  Piece piece;
  piece.target = p.targets.target_of(index);
  const auto before = static_cast<int>(p.targets.first_piece[piece.target]);
  const auto end = static_cast<int>(p.targets.first_piece[piece.target + 1]);
  const int weight_tiles = (end - before) / p.tiles.tiles;
  const int band = (index - before) / (kBand * p.tiles.tiles);
  const int width = min(weight_tiles - band * kBand, kBand);
  const int left = index - before - band * kBand * p.tiles.tiles;
  piece.weight_tile = band * kBand + left % width;
  piece.count_tile = left / width;
  return piece;
}

using Turn = cuda::Turn<kStages>;

// What a thread of the copying warp holds of the two indices of digits: entries of one group of 32.
struct Digits {
  int32_t weights;
  int32_t counts;
};

__device__ inline Digits load_digits(const Problem& p, const Piece& piece, int group) {
  const int groups = p.tiles.groups;
  const int32_t* weights = p.targets.weights[piece.target].digit_index;
  if (group >= groups) return {-1, -1};
  return {weights == nullptr ? -1 : weights[int64_t{piece.weight_tile} * groups + group],
          p.tiles.digit_index[int64_t{piece.count_tile} * groups + group]};
}

// Asks for the tiles of one stage; one thread does.
__device__ inline void fetch(Shared& shared, const Problem& p, const Piece& piece, int group,
                             const Digits& digits, int weights, int counts, int rank,
                             const Turn& turn) {
  const int weight_cell = piece.weight_tile * p.tiles.groups + group;
  const int token = rank * kBlockTokens;
  cuda::Barrier* full = &shared.full[turn.stage];
  cuda::expect_bytes(full, kWeightBytes + kBlockCountBytes + kScaleBytes);
  const Maps& maps = p.weights[piece.target];
  const int tile = weights == 0 ? weight_cell : digit_tile(digits.weights, weights);
  cuda::copy_tile_to(kWholeCluster, shared.weights[turn.stage] + rank * kShareRows * 128,
                     weights == 0 ? &maps.core : &maps.digits,
                     tile * kTileOutputs + rank * kShareRows, 0, full);
  if (counts == 0) {
    cuda::copy_tile(shared.counts[turn.stage], &p.counts.core,
                    piece.count_tile * kTileTokens + token, group * kFlagGroup, full);
  } else {
    cuda::copy_tile(shared.counts[turn.stage], &p.counts.digits,
                    digit_tile(digits.counts, counts) * kTileTokens + token, 0, full);
  }
  cuda::copy_bulk(shared.scales[turn.stage],
                  p.targets.weights[piece.target].scales + int64_t{weight_cell} * kTileOutputs,
                  kScaleBytes, full);
}

// Asks for all tiles of a group; every thread of the copying warp has its digits.
__device__ inline void fetch_group(Shared& shared, const Problem& p, const Piece& piece, int group,
                                   const Digits& digits, int rank, int lane, Turn& turn) {
  const int weight_tiles = digit_tiles(digits.weights);
  const int count_tiles = digit_tiles(digits.counts);
  int left = weight_tiles * count_tiles;
  bool begun = false;
  for_each_product(weight_tiles, count_tiles, [&](int weights, int counts, bool shift) {
    --left;
    if (lane == 0) {
      if (turn.round > 0) cuda::wait_for(&shared.empty[turn.stage], (turn.round - 1) & 1);
      shared.purposes[turn.stage] =
          (begun ? kAccumulate : 0) + (shift ? kShift : 0) + (left == 0 ? kLast : 0);
      fetch(shared, p, piece, group, digits, weights, counts, rank, turn);
    }
    begun = true;
    turn.next();
  });
  __syncwarp();
}

// The copying warp.
__device__ inline void produce(Shared& shared, const Problem& p, int first, int step, int rank,
                               int lane) {
  Turn turn;
  for (int index = first; index < p.pieces; index += step) {
    const Piece piece = piece_at(p, index);
    Digits held{};
    for (int g = 0; g < p.tiles.groups; ++g) {
      if (g % cuda::kWarpSize == 0) held = load_digits(p, piece, g + lane);
      const Digits digits{__shfl_sync(cuda::kFullWarp, held.weights, g % cuda::kWarpSize),
                          __shfl_sync(cuda::kFullWarp, held.counts, g % cuda::kWarpSize)};
      fetch_group(shared, p, piece, g, digits, rank, lane, turn);
    }
  }
}

}  // namespace spb::spike::warpgroups
