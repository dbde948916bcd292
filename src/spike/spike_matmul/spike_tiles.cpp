// Many rows of counts on the tile unit: a chunk of weights stays in the second-level cache while
// strips of counts pass by.
#include "spike/spike_matmul/spike_tiles.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "spike/spike_matmul/spike_path.h"

namespace spb::spike {
namespace {

// Groups whose sums are added before moving on: two strips of so many just leave room for the rest
// in the first-level cache.
constexpr int64_t kPassGroups = 6;
// Blocks and strips handled together: their sums take half a MiB.
constexpr int64_t kChunkBlocks = 16;
constexpr int64_t kChunkStrips = 32;

// The counts as tiles. Rows with a count beyond kTileCount are left out.
struct Strips {
  int32_t* tokens;  // which row of the counts each row of the strips is
  int64_t token_count;
  int8_t* low;
  int8_t* high;         // null when there are no bursts
  uint8_t* high_flags;  // [strips, groups]
  int64_t groups;

  int64_t count() const { return (token_count + kStripRows - 1) / kStripRows; }
  int64_t bytes() const { return groups * kGroupTileBytes; }
};

// Room of one thread.
struct Scratch {
  float* sums;            // [kChunkStrips, kChunkBlocks] tiles
  int8_t* excess;         // [kChunkBlocks, kPassGroups] pairs of tiles
  uint8_t* excess_flags;  // [kChunkBlocks, kPassGroups]
  int64_t* corrections;   // [groups, 16]
  int32_t* offsets;       // [groups]
};

bool fits_tiles(const SpikePathArgs& args, int64_t token) {
  const int8_t* core = args.core(token);
  for (const Burst& b : args.bursts(token)) {
    if (std::abs(b.excess + core[b.channel]) > kTileCount) return false;
  }
  return true;
}

// Where column c of row r of a strip lies.
int64_t tile_offset(int64_t r, int64_t c) { return c / 64 * kTileBytes + 64 * r + c % 64; }

void pack_strip(const SpikePathArgs& args, const Strips& strips, int64_t strip) {
  int8_t* low = strips.low + strip * strips.bytes();
  const int64_t first = strip * kStripRows;
  const int64_t rows = std::min(kStripRows, strips.token_count - first);
  if (rows < kStripRows) std::memset(low, 0, static_cast<size_t>(strips.bytes()));
  for (int64_t r = 0; r < rows; ++r) {
    const int8_t* core = args.core(strips.tokens[first + r]);
    for (int64_t c = 0; c < args.columns(); c += 64) {
      std::memcpy(low + tile_offset(r, c), core + c, 64);
    }
  }
  if (strips.high == nullptr) return;
  int8_t* high = strips.high + strip * strips.bytes();
  uint8_t* flags = strips.high_flags + strip * strips.groups;
  std::memset(flags, 0, static_cast<size_t>(strips.groups));
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t token = strips.tokens[first + r];
    for (const Burst& b : args.bursts(token)) {
      const int64_t group = b.channel / kScaleGroup;
      if (flags[group] == 0) {
        std::memset(high + group * kGroupTileBytes, 0, static_cast<size_t>(kGroupTileBytes));
      }
      flags[group] = 1;
      const int32_t count = args.core(token)[b.channel] + b.excess;
      const int32_t remainder = ((count + 64) & 127) - 64;
      low[tile_offset(r, b.channel)] = static_cast<int8_t>(remainder);
      high[tile_offset(r, b.channel)] = static_cast<int8_t>((count - remainder) / 128);
    }
  }
}

Strips pack_strips(Context& context, const SpikePathArgs& args) {
  Arena& arena = context.arena();
  Strips strips{};
  strips.tokens = arena.allocate<int32_t>(args.tokens());
  strips.groups = args.groups();
  for (int64_t i = 0; i < args.tokens(); ++i) {
    if (fits_tiles(args, i)) strips.tokens[strips.token_count++] = static_cast<int32_t>(i);
  }
  strips.low = arena.allocate<int8_t>(strips.count() * strips.bytes());
  if (!args.counts.bursts.empty()) {
    strips.high = arena.allocate<int8_t>(strips.count() * strips.bytes());
    strips.high_flags = arena.allocate<uint8_t>(strips.count() * strips.groups);
  }
  context.pool().parallel_for(strips.count(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) pack_strip(args, strips, s);
  });
  return strips;
}

// The excess of some blocks and groups as tiles of its own.
void spread_excess(const SpikeWeight::Impl& weight, int64_t block, int64_t blocks, int64_t group,
                   int64_t groups, const Scratch& scratch) {
  for (int64_t i = 0; i < blocks * groups; ++i) {
    const auto excess = weight.excess_of(block + i / groups, group + i % groups);
    scratch.excess_flags[i] = excess.empty() ? 0 : 1;
    if (excess.empty()) continue;
    int8_t* tiles = scratch.excess + i * kGroupTileBytes;
    std::memset(tiles, 0, static_cast<size_t>(kGroupTileBytes));
    for (const CellExcess& e : excess) {
      tiles[64 * (e.column / 4) + 4 * e.row + e.column % 4] = static_cast<int8_t>(e.excess);
    }
  }
}

// Some strips times up to kChunkBlocks blocks.
void multiply_chunk(const SpikePathArgs& args, const Strips& strips, int64_t strip, int64_t count,
                    const PieceRange& range, const Scratch& scratch) {
  const SpikeWeight::Impl& weight = range.target->weight->impl();
  const int64_t blocks = range.end - range.begin;
  std::fill_n(scratch.sums, count * blocks * kSumTile, 0.0f);
  for (int64_t group = 0; group < args.groups(); group += kPassGroups) {
    const int64_t groups = std::min(kPassGroups, args.groups() - group);
    const bool excess = !weight.excess.empty();
    if (excess) spread_excess(weight, range.begin, blocks, group, groups, scratch);
    const int64_t at = strip * strips.bytes() + group * kGroupTileBytes;
    const bool high = strips.high != nullptr;
    isa_amx::multiply_spike_tiles(
        {.strips = count,
         .low = strips.low + at,
         .high = high ? strips.high + at : nullptr,
         .high_flags = high ? strips.high_flags + strip * strips.groups + group : nullptr,
         .strip_bytes = strips.bytes(),
         .strip_flags = strips.groups,
         .blocks = blocks,
         .cells = weight.block(range.begin) + group * kCellBytes,
         .block_bytes = weight.groups() * kCellBytes,
         .excess = scratch.excess,
         .excess_flags = excess ? scratch.excess_flags : nullptr,
         .groups = groups,
         .sums = scratch.sums});
  }
  const int64_t row = range.begin * kBlockRows;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t first = (strip + s) * kStripRows;
    isa_amx::put_spike_tiles({.sums = scratch.sums + s * blocks * kSumTile,
                              .rows = std::min(range.end * kBlockRows, weight.rows) - row,
                              .tokens = strips.tokens + first,
                              .token_count = std::min(kStripRows, strips.token_count - first),
                              .thresholds = args.counts.thresholds.as<float>(),
                              .out = output_of(*range.target, 0, row)});
  }
}

void multiply_range(const SpikePathArgs& args, const Strips& strips, const PieceRange& range,
                    const Scratch& scratch) {
  for (int64_t block = range.begin; block < range.end; block += kChunkBlocks) {
    const PieceRange chunk{range.target, block, std::min(block + kChunkBlocks, range.end)};
    for (int64_t strip = 0; strip < strips.count(); strip += kChunkStrips) {
      multiply_chunk(args, strips, strip, std::min(kChunkStrips, strips.count() - strip), chunk,
                     scratch);
    }
  }
  // Rows that were left out.
  int64_t next = 0;
  for (int64_t i = 0; i < args.tokens(); ++i) {
    if (next < strips.token_count && strips.tokens[next] == i) {
      ++next;
      continue;
    }
    sum_counts(args.core(i), args.groups(), scratch.offsets);
    multiply_cell_rows(args, range, i, 1, scratch.offsets, scratch.corrections);
  }
}

Scratch allocate_scratch(Arena& arena, const SpikePathArgs& args) {
  const int64_t cells = kChunkBlocks * kPassGroups;
  return {arena.allocate<float>(kChunkStrips * kChunkBlocks * kSumTile),
          arena.allocate<int8_t>(cells * kGroupTileBytes), arena.allocate<uint8_t>(cells),
          arena.allocate<int64_t>(args.groups() * kBlockRows),
          arena.allocate<int32_t>(args.groups())};
}

}  // namespace

void multiply_tiles(Context& context, const SpikePathArgs& args) {
  const Strips strips = pack_strips(context, args);
  const int threads = context.pool().threads();
  Scratch* scratch = context.arena().allocate<Scratch>(threads);
  for (int i = 0; i < threads; ++i) scratch[i] = allocate_scratch(context.arena(), args);
  const auto blocks = &SpikeWeight::Impl::blocks;
  context.pool().parallel_for(
      count_pieces(args, blocks), 2, [&](int64_t begin, int64_t end, int thread) {
        for_each_target(args, blocks, begin, end, [&](const PieceRange& range) {
          multiply_range(args, strips, range, scratch[thread]);
        });
      });
}

}  // namespace spb::spike
