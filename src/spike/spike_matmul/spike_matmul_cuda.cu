#include "spike/spike_matmul/spike_matmul_cuda.h"

#include <algorithm>

#include "core/cuda/pack.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

// Up to here rows of counts come in eights, each reading all weights, rather than in tiles, most of
// whose tokens would be missing.
constexpr int64_t kMostInEights = 32;

DeviceCounts rows_of(const DeviceCounts& counts, int64_t first, int64_t rows) {
  DeviceCounts part = counts;
  part.core += first * counts.core_stride;
  part.drives += first * counts.drive_stride;
  if (part.ups != nullptr) part.ups += first * counts.up_stride;
  part.thresholds += first;
  part.burst_groups += first * counts.groups;
  part.rows = rows;
  return part;
}

void multiply_in_eights(Context& context, const DeviceCounts& counts,
                        std::span<const SpikeMatmulTarget> targets) {
  for (int64_t first = 0; first < counts.rows; first += kFewTokens) {
    const int64_t rows = std::min<int64_t>(kFewTokens, counts.rows - first);
    SpikeMatmulTarget parts[kMaxTargets];
    for (size_t t = 0; t < targets.size(); ++t) {
      parts[t] = targets[t];
      parts[t].y = targets[t].y.rows(first, rows);
    }
    multiply_few_tokens(context, rows_of(counts, first, rows), {parts, targets.size()});
  }
}

bool may_take_events(const Device& device, const DeviceCounts& counts,
                     std::span<const SpikeMatmulTarget> targets) {
  int64_t rows = 0;
  for (const SpikeMatmulTarget& target : targets) {
    if (!target.weight->channel_major()) return false;
    rows += target.weight->rows();
  }
  return counts.rows == 1 && event_pays(device, rows, 1);
}

void multiply_few(Context& context, const DeviceCounts& counts,
                  std::span<const SpikeMatmulTarget> targets, bool insists_on_dense) {
  const Device& device = context.device();
  if (insists_on_dense || !may_take_events(device, counts, targets)) {
    return multiply_in_eights(context, counts, targets);
  }
  const double most_fired = (1 - least_silence(device)) * counts.channels;
  const Choice choice = choose_by_silence(context, counts, static_cast<int>(most_fired));
  multiply_few_tokens(context, counts, targets, choice);
  multiply_fired(context, counts, targets, choice);
}

bool use_warpgroups(Context& context, TileUnit unit) {
  return unit == TileUnit::kAutomatic && context.stream().is_hopper();
}

void multiply_tiles(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                    std::span<const SpikeMatmulTarget> targets, TileUnit unit) {
  if (use_warpgroups(context, unit)) {
    multiply_warpgroup_tiles(context, counts, tiles, targets);
  } else {
    multiply_warp_tiles(context, counts, tiles, targets);
  }
  for (const SpikeMatmulTarget& target : targets) multiply_far(context, counts, tiles, target);
}

void multiply_events(Context& context, const DeviceCounts& counts, const SpikeMatmulArgs& args,
                     std::span<const SpikeMatmulTarget> targets) {
  for (size_t t = 0; t < args.targets.size(); ++t) {
    check(args.targets[t].weight->channel_major(),
          "spike_matmul: target {}: expected a channel-major copy for events, got none", t);
  }
  for (int64_t row = 0; row < counts.rows; ++row) {
    SpikeMatmulTarget parts[kMaxTargets];
    for (size_t t = 0; t < targets.size(); ++t) {
      parts[t] = targets[t];
      parts[t].y = targets[t].y.rows(row, 1);
    }
    multiply_fired(context, rows_of(counts, row, 1), {parts, targets.size()});
  }
}

}  // namespace

void spike_matmul_cuda(Context& context, const SpikeMatmulArgs& args, TileUnit unit) {
  check(args.path != SpikePath::kPlanes,
        "spike_matmul: spike trains are executed on the CPU only, got device {}",
        to_string(context.device()));
  const DeviceCounts counts = device_counts("spike_matmul", *args.counts);
  const Arena::Scope scope(context.arena());
  const bool tiled =
      args.path != SpikePath::kEvents && (counts.rows > kMostInEights || unit == TileUnit::kWarps);
  const CountTiles tiles = tiled ? tile_counts(context, counts) : CountTiles{};
  for (size_t begin = 0; begin < args.targets.size(); begin += kMaxTargets) {
    const auto targets =
        args.targets.subspan(begin, std::min<size_t>(kMaxTargets, args.targets.size() - begin));
    if (args.path == SpikePath::kEvents) {
      multiply_events(context, counts, args, targets);
    } else if (tiled) {
      multiply_tiles(context, counts, tiles, targets, unit);
    } else {
      multiply_few(context, counts, targets, args.path == SpikePath::kDense);
    }
  }
}

bool spike_gated_matmul_fused(Context& context, const SpikeGatedMatmulArgs& args) {
  if (!use_warpgroups(context, TileUnit::kAutomatic) || args.y.shape()[0] <= kMostInEights ||
      args.y.dtype() != DType::kBF16 || !cuda::packs_fit(args.y, 8)) {
    return false;
  }
  const DeviceCounts counts = device_counts("spike_gated_matmul", *args.counts);
  const Arena::Scope scope(context.arena());
  const CountTiles tiles = tile_counts(context, counts);
  const SpikeMatmulTarget targets[] = {{args.gate, {}, args.y}, {args.up, {}, args.y}};
  multiply_warpgroup_tiles(context, counts, tiles, targets, true);
  multiply_far_gated(context, counts, tiles, args);
  return true;
}

}  // namespace spb::spike
