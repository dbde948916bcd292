// spike_matmul: checks its arguments and chooses the path. The other files of this folder:
//   spike_weight       preparation; spike_cells.h and spike_bands.h are its two layouts
//   spike_dense        products of cells; spike_cells_cpu_kernels
//   spike_tiles        the same for many rows on the tile unit; spike_tiles_cpu_amx
//   spike_events       products of bands, only of channels that fire; spike_bands_cpu_kernels
//   spike_planes       the spike train, bit by bit
//   spike_corrections  what bursts and codes beyond int8 add to the sums of the cores
//   spike_rescale.h    the roundings, shared by the kernels
//   *_cuda             another layout and other kernels; spike_products.cuh is what they share
//   spike_path.h       what the paths share
//   spike_matmul_reference   the oracle
//   spike_gated_matmul       two products and their swiglu
#include "spike/spike_matmul/spike_matmul.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "core/isa.h"
#include "core/tensor_check.h"
#include "spike/spike_matmul/spike_matmul_cuda.h"
#include "spike/spike_matmul/spike_path.h"
#include "spike/spike_matmul/spike_tiles.h"

namespace spb::spike {
namespace {

// On a CUDA device there are none.
void check_bursts(const SpikeCounts& counts) {
  const Shape& shape = counts.core.shape();
  const Burst* before = nullptr;
  for (const Burst& b : counts.bursts) {
    check(b.row >= 0 && b.row < shape[0] && b.channel >= 0 && b.channel < shape[1],
          "spike_matmul: bursts: expected places inside {}, got row {}, channel {}", shape, b.row,
          b.channel);
    check(before == nullptr || before->row < b.row ||
              (before->row == b.row && before->channel < b.channel),
          "spike_matmul: bursts: expected ascending rows and channels, each place once, got row "
          "{}, channel {} out of order",
          b.row, b.channel);
    const int64_t count = int64_t{b.excess} + counts.core.row_as<int8_t>(b.row)[b.channel];
    check(std::abs(count) <= kMaxCount,
          "spike_matmul: bursts: row {}, channel {}: expected |count| up to {}, got {}", b.row,
          b.channel, kMaxCount, count);
    before = &b;
  }
}

void check_counts(const SpikeCounts* counts) {
  check(counts != nullptr && counts->core.shape().rank() == 2,
        "spike_matmul: counts: expected a core [M, K], got {}",
        counts != nullptr ? counts->core.shape().to_string() : "none");
  const Shape& shape = counts->core.shape();
  check_tensor("spike_matmul", "core", counts->core, DType::kI8, shape);
  check_tensor("spike_matmul", "thresholds", counts->thresholds, DType::kF32, Shape{shape[0]});
  check_bursts(*counts);
}

void check_target(const Device& device, const SpikeMatmulArgs& args, size_t index) {
  const SpikeMatmulTarget& target = args.targets[index];
  const Shape& shape = args.counts->core.shape();
  check(target.weight != nullptr && target.weight->defined(),
        "spike_matmul: target {}: expected a prepared weight, got none", index);
  check(target.weight->impl().device == device,
        "spike_matmul: target {}: expected a weight on device {}, got {}", index, to_string(device),
        to_string(target.weight->impl().device));
  check(shape[1] == target.weight->columns(),
        "spike_matmul: target {}: expected counts with {} channels, got {}", index,
        target.weight->columns(), shape[1]);
  const int64_t rows = target.weight->rows();
  check_activation("spike_matmul", "y", target.y, device, Shape{shape[0], rows});
  if (target.bias.defined()) {
    check_tensor("spike_matmul", "bias", target.bias, DType::kF32, Shape{rows});
    check_no_overlap("spike_matmul", "y", target.y, "bias", target.bias);
  }
  check_no_overlap("spike_matmul", "y", target.y, "core", args.counts->core);
  check_no_overlap("spike_matmul", "y", target.y, "thresholds", args.counts->thresholds);
  for (const ConstTensorView& drives : {args.counts->drives, args.counts->ups}) {
    if (drives.defined()) check_no_overlap("spike_matmul", "y", target.y, "drives", drives);
  }
  for (size_t other = 0; other < index; ++other) {
    check_no_overlap("spike_matmul", "y", target.y, "another y", args.targets[other].y);
  }
}

// Whether the channels that fire are listed for every row.
bool lists_active(const SpikeCounts& counts) {
  return static_cast<int64_t>(counts.active_begin.size()) == counts.core.shape()[0] + 1;
}

void check_events(const SpikeMatmulArgs& args) {
  check(lists_active(*args.counts),
        "spike_matmul: active_begin: expected {} entries for events, got {}",
        args.counts->core.shape()[0] + 1, args.counts->active_begin.size());
  for (size_t t = 0; t < args.targets.size(); ++t) {
    check(args.targets[t].weight->channel_major(),
          "spike_matmul: target {}: expected a channel-major copy for events, got none", t);
  }
}

enum class Kernel { kCells, kTiles, kEvents, kPlanes };

// From so many rows of counts on, tiles are worth their while: a strip of them costs as much as 8.
constexpr int64_t kTileTokens = 9;

Kernel dense_kernel(const SpikeCounts& counts, const SpikeWeight::Impl& weight) {
  const bool tiles = isa() == Isa::kAmx && counts.core.shape()[0] >= kTileTokens &&
                     weight.largest_excess <= kTileExcess;
  return tiles ? Kernel::kTiles : Kernel::kCells;
}

Kernel automatic_kernel(const SpikeCounts& counts, const SpikeWeight& weight) {
  const int64_t channels = counts.core.shape()[1];
  if (counts.core.shape()[0] == 1 && weight.channel_major() && lists_active(counts)) {
    const double silence =
        1.0 - static_cast<double>(counts.active.size()) / static_cast<double>(channels);
    if (event_pays(Device{}, weight.rows(), silence)) return Kernel::kEvents;
  }
  return dense_kernel(counts, weight.impl());
}

Kernel kernel_of(const SpikeMatmulArgs& args, const SpikeMatmulTarget& target) {
  switch (args.path) {
    case SpikePath::kEvents: return Kernel::kEvents;
    case SpikePath::kPlanes: return Kernel::kPlanes;
    case SpikePath::kDense: return dense_kernel(*args.counts, target.weight->impl());
    default: return automatic_kernel(*args.counts, *target.weight);
  }
}

void run(Kernel kernel, Context& context, const SpikePathArgs& args) {
  switch (kernel) {
    case Kernel::kCells: return multiply_dense_cells(context, args);
    case Kernel::kTiles: return multiply_tiles(context, args);
    case Kernel::kEvents: return multiply_events(context, args);
    case Kernel::kPlanes: return multiply_planes(context, args);
  }
}

const int64_t* find_bursts(Context& context, const SpikeCounts& counts) {
  const int64_t rows = counts.core.shape()[0];
  auto* begin = context.arena().allocate<int64_t>(rows + 1);
  size_t next = 0;
  for (int64_t i = 0; i <= rows; ++i) {
    while (next < counts.bursts.size() && counts.bursts[next].row < i) ++next;
    begin[i] = static_cast<int64_t>(next);
  }
  return begin;
}

// The cores, copied into whole groups if the last one is short.
ConstTensorView fill_groups(Context& context, const ConstTensorView& core) {
  const int64_t channels = core.shape()[1];
  const int64_t columns = (channels + kScaleGroup - 1) / kScaleGroup * kScaleGroup;
  if (columns == channels) return core;
  const TensorView filled = context.arena().tensor(DType::kI8, Shape{core.shape()[0], columns});
  for (int64_t i = 0; i < core.shape()[0]; ++i) {
    std::memcpy(filled.row(i), core.row(i), static_cast<size_t>(channels));
    std::memset(filled.row(i) + channels, 0, static_cast<size_t>(columns - channels));
  }
  return filled;
}

}  // namespace

void check_spike_matmul(const Device& device, const SpikeMatmulArgs& args) {
  check_counts(args.counts);
  for (size_t t = 0; t < args.targets.size(); ++t) check_target(device, args, t);
}

void spike_matmul(Context& context, const SpikeMatmulArgs& args) {
  check_spike_matmul(context.device(), args);
  const bool cuda = context.device().is_cuda();
  if (args.path == SpikePath::kEvents && !cuda) check_events(args);
  if (args.counts->core.shape()[0] == 0) return;
  if (cuda) return spike_matmul_cuda(context, args);
  Arena::Scope scope(context.arena());
  SpikePathArgs path{*args.counts,
                     fill_groups(context, args.counts->core),
                     {},
                     find_bursts(context, *args.counts)};
  // Targets that take the same path share the preparation of the counts and one parallel region.
  const SpikeMatmulTarget** chosen =
      context.arena().allocate<const SpikeMatmulTarget*>(static_cast<int64_t>(args.targets.size()));
  for (const Kernel kernel : {Kernel::kCells, Kernel::kTiles, Kernel::kEvents, Kernel::kPlanes}) {
    size_t count = 0;
    for (const SpikeMatmulTarget& target : args.targets) {
      if (kernel_of(args, target) == kernel) chosen[count++] = &target;
    }
    path.targets = {chosen, count};
    if (count > 0) run(kernel, context, path);
  }
}

}  // namespace spb::spike
