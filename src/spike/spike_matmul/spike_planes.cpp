// The spike train itself: counts unfolded into signed bits, executed with additions alone.
//
// A count is sign * sum of 2^t b_t. Timestep by timestep, most significant bit first, the weights
// of the channels that spike are added or subtracted; between two timesteps the membrane doubles,
// which is again an addition. Sums of one timestep over the 128 channels of a group stay within
// 128 * 128 for int8 codes, so that 16 bits hold them.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "spike/spike_matmul/spike_path.h"

namespace spb::spike {
namespace {

// Spikes of one timestep in one group: the channel, and whether it excites or inhibits.
struct Spike {
  uint8_t column;
  bool negative;
};

// The train of one row of counts: spikes of every (group, timestep), in this order.
struct SpikeTrain {
  int timesteps = 0;
  std::vector<Spike> spikes;
  std::vector<size_t> begin;  // [groups * timesteps + 1]

  std::span<const Spike> at(int64_t group, int step) const {
    const auto i = static_cast<size_t>(group * timesteps + step);
    return {spikes.data() + begin[i], begin[i + 1] - begin[i]};
  }
};

std::vector<int32_t> whole_counts(const SpikePathArgs& args, int64_t token) {
  const int8_t* core = args.core(token);
  std::vector<int32_t> counts(core, core + args.columns());
  for (const Burst& b : args.bursts(token)) counts[static_cast<size_t>(b.channel)] += b.excess;
  return counts;
}

// Appends the spikes of one timestep of one group.
void append_spikes(const int32_t* counts, int bit, std::vector<Spike>& spikes) {
  for (int64_t c = 0; c < kScaleGroup; ++c) {
    if ((std::abs(counts[c]) >> bit & 1) == 0) continue;
    spikes.push_back({static_cast<uint8_t>(c), counts[c] < 0});
  }
}

SpikeTrain unfold(const std::vector<int32_t>& counts) {
  SpikeTrain train;
  int32_t largest = 0;
  for (const int32_t count : counts) largest = std::max(largest, std::abs(count));
  while (largest >> train.timesteps != 0) ++train.timesteps;
  train.begin.push_back(0);
  for (size_t first = 0; first < counts.size(); first += kScaleGroup) {
    for (int bit = train.timesteps - 1; bit >= 0; --bit) {
      append_spikes(counts.data() + first, bit, train.spikes);
      train.begin.push_back(train.spikes.size());
    }
  }
  return train;
}

// One cell, channel by channel: the int8 cores of 16 rows, and what they are exceeded by.
struct Channels {
  int16_t core[kScaleGroup][kBlockRows];
  std::vector<CellExcess> excess[kScaleGroup];
};

void spread_cell(const SpikeWeight::Impl& weight, int64_t block, int64_t group,
                 Channels& channels) {
  const auto* cell = reinterpret_cast<const int8_t*>(weight.block(block) + group * kCellBytes);
  for (int64_t c = 0; c < kScaleGroup; ++c) {
    for (int64_t r = 0; r < kBlockRows; ++r) {
      channels.core[c][r] = cell[64 * (c / 4) + 4 * r + c % 4];
    }
    channels.excess[c].clear();
  }
  for (const CellExcess& e : weight.excess_of(block, group)) {
    channels.excess[e.column].push_back(e);
  }
}

// Membranes of 16 rows after the train of one group.
void integrate(const Channels& channels, const SpikeTrain& train, int64_t group,
               int64_t* membrane) {
  std::fill_n(membrane, kBlockRows, 0);
  for (int step = 0; step < train.timesteps; ++step) {
    int16_t drive[kBlockRows] = {};
    for (int64_t r = 0; r < kBlockRows; ++r) membrane[r] += membrane[r];
    for (const Spike spike : train.at(group, step)) {
      const int16_t* core = channels.core[spike.column];
      for (int64_t r = 0; r < kBlockRows; ++r) {
        drive[r] = static_cast<int16_t>(spike.negative ? drive[r] - core[r] : drive[r] + core[r]);
      }
      for (const CellExcess& e : channels.excess[spike.column]) {
        membrane[e.row] += spike.negative ? -e.excess : e.excess;
      }
    }
    for (int64_t r = 0; r < kBlockRows; ++r) membrane[r] += drive[r];
  }
}

// Results [tokens, 16] of one block.
void multiply_block(const SpikePathArgs& args, const SpikeWeight::Impl& weight, int64_t block,
                    const std::vector<SpikeTrain>& trains, std::vector<float>& results) {
  Channels channels;
  std::fill(results.begin(), results.end(), 0.0f);
  for (int64_t g = 0; g < args.groups(); ++g) {
    spread_cell(weight, block, g, channels);
    const auto* scales =
        reinterpret_cast<const float*>(weight.block(block) + g * kCellBytes + kCellCodeBytes);
    for (size_t i = 0; i < trains.size(); ++i) {
      int64_t membrane[kBlockRows];
      integrate(channels, trains[i], g, membrane);
      float* sums = results.data() + i * kBlockRows;
      for (int64_t r = 0; r < kBlockRows; ++r) {
        sums[r] = std::fma(static_cast<float>(membrane[r]), scales[r], sums[r]);
      }
    }
  }
}

void put_block(const SpikePathArgs& args, const SpikeMatmulTarget& target, int64_t block,
               const std::vector<float>& results) {
  const int64_t rows = std::min(kBlockRows, target.weight->rows() - block * kBlockRows);
  for (int64_t i = 0; i < args.tokens(); ++i) {
    const RowOutput out = output_of(target, i, block * kBlockRows);
    const float* sums = results.data() + i * kBlockRows;
    for (int64_t r = 0; r < rows; ++r) {
      const float value =
          std::fma(args.threshold(i), sums[r], out.bias != nullptr ? out.bias[r] : 0.0f);
      out.y[r] = out.accumulate ? out.y[r] + value : value;
    }
  }
}

}  // namespace

void multiply_planes(Context& context, const SpikePathArgs& args) {
  std::vector<SpikeTrain> trains;
  for (int64_t i = 0; i < args.tokens(); ++i) trains.push_back(unfold(whole_counts(args, i)));
  const auto blocks = &SpikeWeight::Impl::blocks;
  context.pool().parallel_for(count_pieces(args, blocks), 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> results(trains.size() * kBlockRows);
    for_each_target(args, blocks, begin, end, [&](const PieceRange& range) {
      for (int64_t block = range.begin; block < range.end; ++block) {
        multiply_block(args, range.target->weight->impl(), block, trains, results);
        put_block(args, *range.target, block, results);
      }
    });
  });
}

}  // namespace spb::spike
