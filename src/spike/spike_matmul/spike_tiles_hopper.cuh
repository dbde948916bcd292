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
// At a stage that may be filled again: every thread that multiplies, and a lane of every such warp
// of the other blocks.
inline constexpr int kArrivals = kConsumers * (kGroupThreads + (kClusterBlocks - 1) * 4);
inline constexpr int kScaleBytes = kTileOutputs * static_cast<int>(sizeof(float));
inline constexpr int kBlocks = kBlockTokens / 8;                        // of eight tokens
inline constexpr int kStagingBytes = kBlockTokens * kGroupOutputs * 2;  // of bf16
// Tiles of weights that pass all tokens before the next ones begin, for the sake of the L2 cache;
// half as many of each matrix where two take turns.
inline constexpr int kBand = 16;

// What the products of a stage are for: a sum of these.
inline constexpr int kAccumulate = 1;  // onto the sum of the stages before
inline constexpr int kShift = 2;       // which first moves up by 8 bits
inline constexpr int kLast = 4;        // of the group: the sum becomes a float
inline constexpr int kPlain = 8;       // and all groups of the piece are like this one

struct Shared {
  signed char weights[kStages][kWeightBytes];
  signed char counts[kStages][kBlockCountBytes];
  unsigned char staging[kConsumers][kStagingBytes];
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
  CUtensorMap outputs[kMaxTargets];  // of those that are in `stored`
  bool stored[kMaxTargets];          // by the copy engine
  DeviceTargets targets;             // pieces are tiles of weights times tiles of counts
  CountTiles tiles;
  const float* thresholds;
  int64_t tokens;
  int pieces;
  bool gated;  // targets are a gate and up: pieces of each are followed by those of the other
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
  const int wide = p.gated ? kBand / 2 : kBand;
  const int band = (index - before) / (wide * p.tiles.tiles);
  const int width = min(weight_tiles - band * wide, wide);
  const int left = index - before - band * wide * p.tiles.tiles;
  piece.weight_tile = band * wide + left % width;
  piece.count_tile = left / width;
  return piece;
}

// What a cluster works on in turn: piece `first` and every `step`-th after it, of the gate and then
// of up where there is one.
class Walk {
 public:
  __device__ Walk(const Problem& p, int first, int step)
      : p_(p), first_(first), step_(step), sides_(p.gated ? 2 : 1) {}

  // False after the last piece.
  __device__ bool next(Piece& piece) {
    const int index = first_ + done_ / sides_ * step_;
    if (index >= p_.pieces) return false;
    piece = piece_at(p_, index);
    if (p_.gated) piece.target = done_ % 2;
    ++done_;
    return true;
  }

 private:
  const Problem& p_;
  int first_;
  int step_;
  int sides_;
  int done_ = 0;
};

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

// Whether a group of the piece has any.
__device__ inline bool has_digits(const Problem& p, const Piece& piece, int lane) {
  bool any = false;
  for (int g = lane; g < p.tiles.groups; g += cuda::kWarpSize) {
    const Digits digits = load_digits(p, piece, g);
    any |= digits.weights >= 0 || digits.counts >= 0;
  }
  return __any_sync(cuda::kFullWarp, any) != 0;
}

// Where the tiles of a stage lie: first rows of the maps, and the column of the counts.
struct Source {
  const CUtensorMap* weights;
  const CUtensorMap* counts;
  const float* scales;
  int weight_row;
  int count_row;
  int count_column;
};

// The cores of group 0 of a piece.
__device__ inline Source cores_of(const Problem& p, const Piece& piece, int rank) {
  const int cell = piece.weight_tile * p.tiles.groups;
  return {.weights = &p.weights[piece.target].core,
          .counts = &p.counts.core,
          .scales = p.targets.weights[piece.target].scales + int64_t{cell} * kTileOutputs,
          .weight_row = cell * kTileOutputs + rank * kShareRows,
          .count_row = piece.count_tile * kTileTokens + rank * kBlockTokens,
          .count_column = 0};
}

__device__ inline Source at_group(Source cores, int group) {
  cores.scales += group * kTileOutputs;
  cores.weight_row += group * kTileOutputs;
  cores.count_column += group * kFlagGroup;
  return cores;
}

// Asks for the tiles of one stage; one thread does.
__device__ inline void fetch(Shared& shared, const Source& from, int purpose, int rank,
                             const Turn& turn) {
  cuda::Barrier* full = &shared.full[turn.stage];
  if (turn.round > 0) cuda::wait_for(&shared.empty[turn.stage], (turn.round - 1) & 1);
  shared.purposes[turn.stage] = purpose;
  cuda::expect_bytes(full, kWeightBytes + kBlockCountBytes + kScaleBytes);
  cuda::copy_tile_to(kWholeCluster, shared.weights[turn.stage] + rank * kShareRows * 128,
                     from.weights, from.weight_row, 0, full);
  cuda::copy_tile(shared.counts[turn.stage], from.counts, from.count_row, from.count_column, full);
  cuda::copy_bulk(shared.scales[turn.stage], from.scales, kScaleBytes, full);
}

// Asks for all tiles of a group that may have digits.
__device__ inline void fetch_group(Shared& shared, const Problem& p, const Piece& piece,
                                   const Source& cores, const Digits& digits, int rank,
                                   bool elected, Turn& turn) {
  const int weight_tiles = digit_tiles(digits.weights);
  const int count_tiles = digit_tiles(digits.counts);
  int left = weight_tiles * count_tiles;
  bool begun = false;
  for_each_product(weight_tiles, count_tiles, [&](int weights, int counts, bool shift) {
    --left;
    Source from = cores;
    if (weights != 0) {
      from.weights = &p.weights[piece.target].digits;
      from.weight_row = digit_tile(digits.weights, weights) * kTileOutputs + rank * kShareRows;
    }
    if (counts != 0) {
      from.counts = &p.counts.digits;
      from.count_row = digit_tile(digits.counts, counts) * kTileTokens + rank * kBlockTokens;
      from.count_column = 0;
    }
    const int purpose = (begun ? kAccumulate : 0) + (shift ? kShift : 0) + (left == 0 ? kLast : 0);
    if (elected) fetch(shared, from, purpose, rank, turn);
    begun = true;
    turn.next();
  });
}

// Asks for all tiles of a piece.
__device__ inline void fetch_piece(Shared& shared, const Problem& p, const Piece& piece, int rank,
                                   bool elected, int lane, Turn& turn) {
  Source from = cores_of(p, piece, rank);
  Digits held{};
  for (int g = 0; g < p.tiles.groups; ++g) {
    if (g % cuda::kWarpSize == 0) held = load_digits(p, piece, g + lane);
    const Digits digits{__shfl_sync(cuda::kFullWarp, held.weights, g % cuda::kWarpSize),
                        __shfl_sync(cuda::kFullWarp, held.counts, g % cuda::kWarpSize)};
    fetch_group(shared, p, piece, from, digits, rank, elected, turn);
    from = at_group(from, 1);
  }
}

// The same of one without digits.
__device__ inline void fetch_plain_piece(Shared& shared, const Problem& p, const Piece& piece,
                                         int rank, bool elected, Turn& turn) {
  Source from = cores_of(p, piece, rank);
#pragma unroll 1
  for (int g = 0; g < p.tiles.groups; ++g) {
    if (elected) fetch(shared, from, kLast | kPlain, rank, turn);
    turn.next();
    from = at_group(from, 1);
  }
}

// The copying warp. Everything waits for it when a stage takes it long, and at the beginning of a
// piece; so whether the next one has digits is found out while stages are full.
__device__ inline void produce(Shared& shared, const Problem& p, int first, int step, int rank,
                               int lane) {
  Turn turn;
  const bool elected = cuda::is_elected();
  Walk walk(p, first, step);
  for (Piece piece; walk.next(piece);) {
    if (has_digits(p, piece, lane)) {
      fetch_piece(shared, p, piece, rank, elected, lane, turn);
    } else {
      fetch_plain_piece(shared, p, piece, rank, elected, turn);
    }
  }
}

}  // namespace spb::spike::warpgroups
