#include "spike/statistics/statistics.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "core/tensor_check.h"

namespace spb::spike {
namespace {

// Entries that one thread counts at once: some ten microseconds.
constexpr int64_t kGrainEntries = 32768;

void count_row(const int8_t* core, int64_t channels, CoreTables& tables, uint8_t* fired) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(core);
  int64_t c = 0;
  for (; c + CoreTables::kTables <= channels; c += CoreTables::kTables) {
    for (int i = 0; i < CoreTables::kTables; ++i) ++tables.counts[i][bytes[c + i]];
  }
  for (; c < channels; ++c) ++tables.counts[0][bytes[c]];
  for (c = 0; c < channels; ++c) fired[c] |= bytes[c] != 0;
}

void add_tables(CoreTables& into, const CoreTables& from) {
  for (int i = 0; i < CoreTables::kTables; ++i) {
    for (int byte = 0; byte < 256; ++byte) into.counts[i][byte] += from.counts[i][byte];
  }
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
  entries_ += count * channels();
}

void SpikeStatistics::add_core(Context& context, const SpikeCounts& counts, int64_t first,
                               int64_t count) {
  const auto add_rows = [&](int64_t begin, int64_t end, CoreTables& tables, uint8_t* fired) {
    for (int64_t m = first + begin; m < first + end; ++m) {
      count_row(counts.core.row_as<int8_t>(m), channels(), tables, fired);
    }
  };
  const int threads = context.pool().threads();
  if (threads == 1 || count * channels() <= kGrainEntries) {
    add_rows(0, count, tables_, fired_.data());
    return;
  }
  // Tables and flags of each thread, added up afterwards.
  const Arena::Scope scope(context.arena());
  CoreTables* tables = context.arena().allocate<CoreTables>(threads);
  uint8_t* fired = context.arena().allocate<uint8_t>(threads * channels());
  std::fill_n(tables, threads, CoreTables());
  std::fill_n(fired, threads * channels(), uint8_t{0});
  const int64_t grain = std::max<int64_t>(1, kGrainEntries / channels());
  context.pool().parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
    add_rows(begin, end, tables[thread], fired + thread * channels());
  });
  for (int t = 0; t < threads; ++t) {
    add_tables(tables_, tables[t]);
    for (int64_t c = 0; c < channels(); ++c) {
      fired_[static_cast<size_t>(c)] |= fired[t * channels() + c];
    }
  }
}

int64_t SpikeStatistics::signed_bin(int count) const {
  int64_t sum = 0;
  for (const auto& table : tables_.counts) sum += table[static_cast<uint8_t>(count)];
  return sum;
}

// The core counted it as 127 or -127: it moves from there to the tail.
void SpikeStatistics::add_burst(const Burst& burst) {
  const int64_t end = burst.excess < 0 ? -kCoreLimit : kCoreLimit;
  const auto count = static_cast<int32_t>(end + burst.excess);
  const int64_t size = std::abs(count);
  --tables_.counts[0][static_cast<uint8_t>(end)];
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
  for (size_t c = 0; c < fired_.size(); ++c) fired_[c] |= other.fired_[c];
  add_sums(other);
}

void SpikeStatistics::pool(const SpikeStatistics& other) {
  fired_.insert(fired_.end(), other.fired_.begin(), other.fired_.end());
  add_sums(other);
}

void SpikeStatistics::add_sums(const SpikeStatistics& other) {
  rows_ += other.rows_;
  entries_ += other.entries_;
  add_tables(tables_, other.tables_);
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
