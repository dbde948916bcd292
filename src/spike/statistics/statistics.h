// statistics: what the spike counts of a site look like, gathered while a model runs.
//
// With n entries (row, channel) of count s and b the number of one bits of |s|:
//
//   histogram[c]   entries with |s| = c, c = 0 .. 127; larger ones are the tail
//   figures        every derived number under a name of its own, see SpikeFigures
//
// "Sparsity" alone means nothing: it depends on the coding, the timesteps and what is averaged
// over. The SpikingBrain-7B report prints 1.13 spikes, 18.4 % silence and a sparsity of 69.15 % at
// 3 timesteps. 1 - 1.13 / 3 is 62.3 %; the three agree only if 1.13 is the mean over the entries
// that fire. Which was meant cannot be known without its data, so both readings are figures here.
//
// Everything gathered is an integer, so the order of adding and merging and the number of threads
// change nothing. Adding costs about a nanosecond for each entry.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/context.h"
#include "spike/codec/codec.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {

// Derived from n entries; all 0 when n is 0. Shares and rates are fractions of 1.
struct SpikeFigures {
  double entries = 0;                       // n
  double silent_share = 0;                  // P0 = histogram[0] / n
  double share_up_to_7 = 0;                 // |s| <= 7
  double share_above_16 = 0;                // |s| > 16
  double share_beyond_core = 0;             // |s| > 127
  double silent_channel_share = 0;          // channels that no row made fire
  double largest_count = 0;                 // max |s|
  double count_bits = 0;                    // bits of the largest count, at least 1
  double mean_count = 0;                    // sum |s| / n
  double mean_spikes_per_entry = 0;         // sum b / n
  double mean_spikes_per_firing_entry = 0;  // sum b / (n - silent)

  // 1 - spikes per entry / 3: the report's sparsity, when its 1.13 is a mean over firing entries.
  double sparsity_t3_per_entry = 0;
  // 1 - spikes per firing entry / 3: what the 1.13 gives when put into the formula as it stands.
  double sparsity_t3_per_firing_entry = 0;
  // The first with a window of 3 bits that larger counts are forced into, in three ways.
  double sparsity_t3_clamped_to_7 = 0;
  double sparsity_t3_low_bits = 0;
  double sparsity_t3_dropped_above_7 = 0;

  // Mean |spike| over entries and timesteps, with the fewest timesteps that hold every count.
  double firing_rate_ternary = 0;                // binary where nothing is negative
  double firing_rate_bitwise_bidirectional = 0;  // pure bitwise where nothing is negative
  double firing_rate_twos_complement = 0;
  double sparsity_all_bits = 0;  // 1 - firing_rate_bitwise_bidirectional

  // Firing entries over entries times timesteps: candidates for what the press calls "active".
  double active_share = 0;                // over entries: 1 - P0
  double active_share_bitwise_steps = 0;  // timesteps of the bitwise coding
  double active_share_ternary_steps = 0;  // of the ternary coding
};

struct FigureField {
  std::string_view name;     // of the field
  std::string_view meaning;  // one line for people
  double SpikeFigures::*value;
};

// Every field of SpikeFigures, in order.
std::span<const FigureField> figure_fields();

// Occurrences of each value of a core byte, spread over tables: neighbours fall into different
// ones, so that no addition waits for another.
struct CoreTables {
  static constexpr int kTables = 4;
  int64_t counts[kTables][256] = {};
};

class SpikeStatistics {
 public:
  static constexpr int kBins = kCoreLimit + 1;

  // Adds rows [first, first + count) of what spike_threshold wrote. Usage error if the number of
  // channels differs from that of an earlier call.
  void add(Context& context, const SpikeCounts& counts, int64_t first, int64_t count);
  void add(Context& context, const SpikeCounts& counts);

  // As if everything added to `other` had been added here; an empty one has any channels.
  void merge(const SpikeStatistics& other);

  // Adds the entries of other neurons, those of another layer or site: their channels count beside
  // the ones here. Afterwards nothing but merge, pool and reading makes sense.
  void pool(const SpikeStatistics& other);

  SpikeFigures figures() const;

  // Entries with |s| = count for 0 .. 127, and beyond.
  int64_t histogram(int count) const;
  int64_t tail() const { return tail_.entries; }

  int64_t rows() const { return rows_; }
  int64_t channels() const { return static_cast<int64_t>(fired_.size()); }
  int64_t entries() const { return entries_; }
  int64_t silent() const { return histogram(0); }
  CountRange range() const;   // the smallest that holds 0 and every count
  int64_t count_sum() const;  // sum |s|: the spikes of the ternary coding
  int64_t spike_sum() const;  // sum b: the spikes of the bitwise coding

  // 1 for every channel that fired in some row.
  std::span<const uint8_t> fired() const { return fired_; }
  int64_t silent_channels() const;

 private:
  // Counts beyond the core, which have no bins.
  struct Tail {
    int64_t entries = 0;
    int64_t negative = 0;              // of them
    int64_t count_sum = 0;             // |s|
    int64_t positive_spike_sum = 0;    // b, of positive counts
    int64_t negative_spike_sum = 0;    // b, of negative counts
    int64_t negative_inverse_sum = 0;  // one bits of |s| - 1, of negative counts
    int64_t low_spike_sum = 0;         // one bits of |s| mod 8
    int32_t lowest = 0;                // the most negative count
    int32_t highest = 0;
  };

  void add_core(Context& context, const SpikeCounts& counts, int64_t first, int64_t count);
  void add_burst(const Burst& burst);
  int64_t signed_bin(int count) const;
  template <typename Weight>
  int64_t sum_bins(Weight weight) const;
  int64_t twos_complement_spikes(int64_t timesteps) const;
  void add_rates(SpikeFigures& figures) const;

  void add_sums(const SpikeStatistics& other);

  int64_t rows_ = 0;
  int64_t entries_ = 0;
  CoreTables tables_;
  Tail tail_;
  std::vector<uint8_t> fired_;  // per channel
};

// What statistics are kept apart by.
struct SiteKey {
  int32_t layer = 0;
  std::string site;         // the projection that reads the spikes
  std::string token_class;  // of the rows, as the caller sorts them

  auto operator<=>(const SiteKey&) const = default;
};

// Ordered by layer, then site, then class.
using SiteStatistics = std::map<SiteKey, SpikeStatistics>;

void merge(SiteStatistics& into, const SiteStatistics& from);

}  // namespace spb::spike
