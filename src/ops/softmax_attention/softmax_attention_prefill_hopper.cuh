// The work of Hopper's prefill kernel, and its copying warpgroup.
//
// Queries come in items, keys and values in tiles of a ring of stages. One thread asks the copy
// engine for what is one piece of memory; what wraps around, ends early or belongs to sinks is
// copied by all threads of the group.
#pragma once

#include "core/cuda/bulk_copy.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/tensor_map.cuh"
#include "core/cuda/tile_stages.cuh"
#include "ops/softmax_attention/softmax_attention_keys.cuh"

namespace spb::ops::prefill {

inline constexpr int kGroupThreads = 128;
inline constexpr int kConsumers = 2;
inline constexpr int kThreads = kGroupThreads * (kConsumers + 1);
inline constexpr int kGroupQueries = 64;
inline constexpr int kQueries = kGroupQueries * kConsumers;
inline constexpr int kTileKeys = kWarpgroupTileKeys;
inline constexpr int kStages = 3;
inline constexpr int kConsumerWarps = kConsumers * kGroupThreads / cuda::kWarpSize;

using KeyTiles = Tiles<kTileKeys>;
using Turn = cuda::Turn<kStages>;

// Columns in parts of 64, each a tile of wgmma.cuh.
template <int kDim>
struct Shared {
  static constexpr int kParts = kDim / 64;
  unsigned char q[kConsumers][kParts][kGroupQueries * 128];
  unsigned char tiles[2][kStages][kParts][kTileKeys * 128];  // keys, values
  cuda::Barrier full[2][kStages];
  cuda::Barrier empty[2][kStages];
  cuda::Barrier q_full;
  cuda::Barrier q_empty;
};

struct Problem {
  CUtensorMap q;        // [tokens, heads * head_dim]
  CUtensorMap ring[2];  // keys, values: [kv_heads * capacity, head_dim]
  PrefillProblem p;
  int items;
};

// What a block does at a time: kQueries queries of one head. Positions are counted from the first
// tile's.
struct Item {
  int head;
  int first;        // query
  int sink_tiles;   // before those of positions
  int count;        // of tiles
  int slot = 0;     // of the first position
  int seen = 0;     // positions before the end of what the first query sees
  int written = 0;  // positions before the end of what the ring holds

  // The last queries see most without a window: they come first.
  __device__ Item(const Problem& problem, int index) {
    const PrefillProblem& p = problem.p;
    head = index % p.heads;
    first = (problem.items - 1 - index) / p.heads * kQueries;
    const KeyTiles tiles(p.visible, first, min(first + kQueries, static_cast<int>(p.tokens)) - 1);
    sink_tiles = static_cast<int>(tiles.sink_tiles);
    count = static_cast<int>(tiles.count);
    if (count == sink_tiles) return;
    slot = static_cast<int>(tiles.first_position % p.visible.ring.capacity);
    seen = static_cast<int>(p.visible.end(first) - tiles.first_position);
    written = static_cast<int>(p.visible.first_position + p.tokens - tiles.first_position);
  }
};

// The item of this block in a round, if below the number of items. Every other round is dealt
// backwards, so that all blocks get about as much.
__device__ inline int item_index(int round) {
  const auto blocks = static_cast<int>(gridDim.x);
  const auto block = static_cast<int>(blockIdx.x);
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

// A stage is free, for one warp that read it.
__device__ inline void release(cuda::Barrier* empty) {
  if (threadIdx.x % cuda::kWarpSize == 0) cuda::arrive(empty);
}

// Rows of a matrix of keys or values: those from `wrap` on lie `capacity` rows earlier, those from
// `valid` on do not exist.
struct TileRows {
  int first;
  int wrap;
  int valid;
  int capacity;
};

// Copies a tile that is not one piece of the ring: 16 bytes at a time, a thread keeps its piece and
// takes every kStep-th row. Rows that do not exist become zeros.
template <int kDim>
__device__ void copy_rows(unsigned char (*parts)[kTileKeys * 128], const std::byte* matrix,
                          const TileRows& rows, int thread) {
  constexpr int kPieces = kDim / 8;
  constexpr int kStep = kGroupThreads / kPieces;
  const int piece = thread % kPieces;
  const auto* from = reinterpret_cast<const __nv_bfloat16*>(matrix) + piece * 8;
#pragma unroll 2
  for (int row = thread / kPieces; row < kTileKeys; row += kStep) {
    const bool valid = row < rows.valid;
    const int at = rows.first + (valid ? row - (row < rows.wrap ? 0 : rows.capacity) : 0);
    cuda::copy_async<16>(parts[piece / 8] + cuda::swizzled(row, piece % 8),
                         from + int64_t{at} * kDim, valid);
  }
  cuda::commit_copies();
  cuda::wait_for_copies<0>();
  cuda::publish_writes();
}

// The queries of an item, for both groups. Those that do not exist are zeros.
template <int kDim>
__device__ void fetch_queries(Shared<kDim>& shared, const Problem& problem, const Item& item,
                              int round) {
  if (round > 0) cuda::wait_for(&shared.q_empty, (round - 1) & 1);
  cuda::expect_bytes(&shared.q_full, static_cast<int>(sizeof(shared.q)));
  for (int group = 0; group < kConsumers; ++group) {
    for (int part = 0; part < kDim / 64; ++part) {
      cuda::copy_tile(shared.q[group][part], &problem.q, item.first + group * kGroupQueries,
                      item.head * kDim + part * 64, &shared.q_full);
    }
  }
}

// Keys and values of a tile that is one piece of the ring.
template <int kDim>
__device__ void fetch_piece(Shared<kDim>& shared, const Problem& problem, const Turn& turn,
                            int row) {
  for (int side = 0; side < 2; ++side) {
    cuda::Barrier* full = &shared.full[side][turn.stage];
    if (turn.round > 0) cuda::wait_for(&shared.empty[side][turn.stage], (turn.round - 1) & 1);
    cuda::expect_bytes(full, static_cast<int>(sizeof(shared.tiles[side][0])));
    for (int part = 0; part < kDim / 64; ++part) {
      cuda::copy_tile(shared.tiles[side][turn.stage][part], &problem.ring[side], row, part * 64,
                      full);
    }
  }
}

// The same of any tile, by the whole group.
template <int kDim>
__device__ void fetch_rows(Shared<kDim>& shared, const KeyRows& source, const Turn& turn,
                           const TileRows& rows, int thread) {
  for (int side = 0; side < 2; ++side) {
    if (thread == 0 && turn.round > 0) {
      cuda::wait_for(&shared.empty[side][turn.stage], (turn.round - 1) & 1);
    }
    __syncwarp();
    cuda::meet_group(1);
    copy_rows<kDim>(shared.tiles[side][turn.stage], side == 0 ? source.keys : source.values, rows,
                    thread);
    cuda::meet_group(1);
    if (thread == 0) cuda::arrive(&shared.full[side][turn.stage]);
  }
}

// The copying warpgroup: one thread of it asks the copy engine for tiles; all of them copy what is
// not one piece.
template <int kDim>
__device__ void produce(Shared<kDim>& shared, const Problem& problem, int thread) {
  const VisibleKeys& visible = problem.p.visible;
  const auto sinks = static_cast<int>(visible.sinks.capacity);
  const auto capacity = static_cast<int>(visible.ring.capacity);
  const bool elected = cuda::is_elected() && thread < cuda::kWarpSize;
  Turn turn;
  for (int round = 0; item_index(round) < problem.items; ++round) {
    const Item item(problem, item_index(round));
    const int kv_head = item.head / problem.p.group;
    if (elected) fetch_queries(shared, problem, item, round);
    for (int t = 0; t < item.sink_tiles; ++t) {
      const int key = t * kTileKeys;
      fetch_rows(shared, visible.sinks, turn, {kv_head * sinks + key, kTileKeys, sinks - key, 0},
                 thread);
      turn.next();
    }
    int slot = item.slot;
    int left = item.written;
    for (int t = item.sink_tiles; t < item.count; ++t) {
      const int row = kv_head * capacity + slot;
      if (left < kTileKeys || capacity - slot < kTileKeys) {
        fetch_rows(shared, visible.ring, turn, {row, capacity - slot, left, capacity}, thread);
      } else if (elected) {
        fetch_piece(shared, problem, turn, row);
      }
      slot += slot + kTileKeys < capacity ? kTileKeys : kTileKeys - capacity;
      left -= kTileKeys;
      turn.next();
    }
  }
}

}  // namespace spb::ops::prefill
