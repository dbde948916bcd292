#include "spike/statistics/statistics.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "core/tensor_check.h"

namespace spb::spike {
namespace {

constexpr int kByteValues = 256;
constexpr int kTables =
    4;  // neighbours fall into different tables, so no addition waits for another

// What one thread counts: occurrences of each byte, and the union of the rows' bytes.
struct Partial {
  int64_t tables[kTables][kByteValues];
  uint8_t* fired;
};

void count_row(const uint8_t* core, int64_t channels, Partial& partial) {
  int64_t c = 0;
  for (; c + kTables <= channels; c += kTables) {
    for (int i = 0; i < kTables; ++i) ++partial.tables[i][core[c + i]];
  }
  for (; c < channels; ++c) ++partial.tables[0][core[c]];
  for (c = 0; c < channels; ++c) partial.fired[c] |= core[c];
}

int64_t one_bits(int64_t value) { return std::popcount(static_cast<uint64_t>(value)); }

}  // namespace

void SpikeStatistics::add(Context& context, const SpikeCounts& counts) {
  add(context, counts, 0, counts.core.shape()[0]);
}

void SpikeStatistics::add(Context& context, const SpikeCounts& counts, int64_t first,
                          int64_t count) {
  const Shape& shape = counts.core.shape();
  check(shape.rank() == 2, "spike statistics: core: expected [M, K], got {}", shape);
  check_tensor("spike statistics", "core", counts.core, DType::kI8, shape);
  check(first >= 0 && count >= 0 && first <= shape[0] - count,
        "spike statistics: rows: expected a range inside {} rows, got {} + {}", shape[0], first,
        count);
  if (count == 0) return;
  check(fired_.empty() || channels() == shape[1],
        "spike statistics: channels: expected {} as before, got {}", channels(), shape[1]);
  fired_.resize(static_cast<size_t>(shape[1]));
  add_core(context, counts, first, count);
  const auto begin = std::lower_bound(counts.bursts.begin(), counts.bursts.end(), first,
                                      [](const Burst& b, int64_t row) { return b.row < row; });
  for (auto burst = begin; burst != counts.bursts.end() && burst->row < first + count; ++burst) {
    add_burst(*burst);
  }
  rows_ += count;
}

void SpikeStatistics::add_core(Context& context, const SpikeCounts& counts, int64_t first,
                               int64_t count) {
  const int64_t channels = counts.core.shape()[1];
  const Arena::Scope scope(context.arena());
  const int threads = context.pool().threads();
  Partial* partials = context.arena().allocate<Partial>(threads);
  uint8_t* fired = context.arena().allocate<uint8_t>(threads * channels);
  std::fill_n(fired, threads * channels, uint8_t{0});
  for (int t = 0; t < threads; ++t) partials[t] = {{}, fired + t * channels};
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, channels));
  context.pool().parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t m = first + begin; m < first + end; ++m) {
      count_row(reinterpret_cast<const uint8_t*>(counts.core.row_as<int8_t>(m)), channels,
                partials[thread]);
    }
  });
  for (int t = 0; t < threads; ++t) {
    for (int count_of = -kCoreLimit; count_of <= kCoreLimit; ++count_of) {
      const auto byte = static_cast<uint8_t>(count_of);
      for (const auto& table : partials[t].tables) {
        signed_[static_cast<size_t>(count_of + kCoreLimit)] += table[byte];
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      fired_[static_cast<size_t>(c)] |= partials[t].fired[c] != 0;
    }
  }
}

// The core counted it as 127 or -127: it moves from there to the tail.
void SpikeStatistics::add_burst(const Burst& burst) {
  const int64_t end = burst.excess < 0 ? -kCoreLimit : kCoreLimit;
  const auto count = static_cast<int32_t>(end + burst.excess);
  const int64_t size = std::abs(count);
  --signed_[static_cast<size_t>(end + kCoreLimit)];
  ++tail_.entries;
  tail_.count_sum += size;
  tail_.low_spike_sum += one_bits(size & 7);
  tail_.lowest = std::min(tail_.lowest, count);
  tail_.highest = std::max(tail_.highest, count);
  if (count > 0) {
    tail_.positive_spike_sum += one_bits(size);
  } else {
    ++tail_.negative;
    tail_.negative_spike_sum += one_bits(size);
    tail_.negative_inverse_sum += one_bits(size - 1);
  }
}

void SpikeStatistics::merge(const SpikeStatistics& other) {
  if (other.rows_ == 0) return;
  check(fired_.empty() || channels() == other.channels(),
        "spike statistics: channels: expected {} as before, got {}", channels(), other.channels());
  fired_.resize(other.fired_.size());
  rows_ += other.rows_;
  for (size_t i = 0; i < signed_.size(); ++i) signed_[i] += other.signed_[i];
  for (size_t c = 0; c < fired_.size(); ++c) fired_[c] |= other.fired_[c];
  for (int64_t Tail::*sum :
       {&Tail::entries, &Tail::negative, &Tail::count_sum, &Tail::positive_spike_sum,
        &Tail::negative_spike_sum, &Tail::negative_inverse_sum, &Tail::low_spike_sum}) {
    tail_.*sum += other.tail_.*sum;
  }
  tail_.lowest = std::min(tail_.lowest, other.tail_.lowest);
  tail_.highest = std::max(tail_.highest, other.tail_.highest);
}

int64_t SpikeStatistics::histogram(int count) const {
  check(count >= 0 && count < kBins, "spike statistics: bin: expected 0 to {}, got {}", kBins - 1,
        count);
  return count == 0 ? signed_bin(0) : signed_bin(count) + signed_bin(-count);
}

CountRange SpikeStatistics::range() const {
  CountRange range = {tail_.lowest, tail_.highest};
  for (int count = -kCoreLimit; count <= kCoreLimit; ++count) {
    if (signed_bin(count) == 0) continue;
    range.lowest = std::min(range.lowest, count);
    range.highest = std::max(range.highest, count);
  }
  return range;
}

int64_t SpikeStatistics::silent_channels() const {
  return std::count(fired_.begin(), fired_.end(), uint8_t{0});
}

void merge(SiteStatistics& into, const SiteStatistics& from) {
  for (const auto& [key, statistics] : from) into[key].merge(statistics);
}

}  // namespace spb::spike
