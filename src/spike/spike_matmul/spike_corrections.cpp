// Exact sums beyond int8: (core + excess) * (core + burst) without the product of the cores.
#include <algorithm>

#include "spike/spike_matmul/spike_path.h"

namespace spb::spike {
namespace {

// The whole count of a channel.
int64_t count_at(const int8_t* core, std::span<const Burst> bursts, int64_t channel) {
  const auto burst =
      std::lower_bound(bursts.begin(), bursts.end(), channel,
                       [](const Burst& b, int64_t wanted) { return b.channel < wanted; });
  const bool found = burst != bursts.end() && burst->channel == channel;
  return core[channel] + (found ? int64_t{burst->excess} : 0);
}

}  // namespace

bool needs_corrections(const SpikePathArgs& args, const SpikeWeight::Impl& weight, int64_t token) {
  return !weight.excess.empty() || args.burst_begin[token] != args.burst_begin[token + 1];
}

void fill_corrections(const SpikePathArgs& args, const SpikeWeight::Impl& weight, int64_t block,
                      int64_t token, int64_t* corrections) {
  const std::span<const Burst> bursts = args.bursts(token);
  std::fill_n(corrections, args.groups() * kBlockRows, 0);
  for (const Burst& burst : bursts) {
    const int64_t group = burst.channel / kScaleGroup;
    const int64_t column = burst.channel % kScaleGroup;
    const auto* codes = reinterpret_cast<const int8_t*>(weight.block(block) + group * kCellBytes) +
                        64 * (column / 4) + column % 4;
    int64_t* sums = corrections + group * kBlockRows;
    for (int64_t r = 0; r < kBlockRows; ++r) sums[r] += int64_t{burst.excess} * codes[4 * r];
  }
  if (weight.excess.empty()) return;
  const int8_t* core = args.core(token);
  for (int64_t g = 0; g < args.groups(); ++g) {
    int64_t* sums = corrections + g * kBlockRows;
    for (const CellExcess& e : weight.excess_of(block, g)) {
      const int64_t channel = g * kScaleGroup + e.column;
      sums[e.row] += e.excess * (bursts.empty() ? core[channel] : count_at(core, bursts, channel));
    }
  }
}

}  // namespace spb::spike
