#include <algorithm>
#include <bit>

#include "spike/codec/codec.h"
#include "spike/statistics/statistics.h"

namespace spb::spike {
namespace {

constexpr int kWindow = 3;         // timesteps of the report
constexpr int kWindowLargest = 7;  // the largest count they hold

int64_t one_bits(int64_t value) { return std::popcount(static_cast<uint64_t>(value)); }

using F = SpikeFigures;
constexpr FigureField kFields[] = {
    {"entries", "spike counts seen: rows x channels", &F::entries},
    {"silent_share", "entries with count 0", &F::silent_share},
    {"share_up_to_7", "entries with |count| <= 7", &F::share_up_to_7},
    {"share_above_16", "entries with |count| > 16", &F::share_above_16},
    {"share_beyond_core", "entries with |count| > 127, kept as bursts", &F::share_beyond_core},
    {"silent_channel_share", "channels that never fired", &F::silent_channel_share},
    {"largest_count", "largest |count|", &F::largest_count},
    {"count_bits", "bits of the largest |count|", &F::count_bits},
    {"mean_count", "mean |count|: spikes per entry, ternary coding", &F::mean_count},
    {"mean_spikes_per_entry", "one bits of |count| per entry, bitwise coding",
     &F::mean_spikes_per_entry},
    {"mean_spikes_per_firing_entry", "one bits of |count| per entry that fires",
     &F::mean_spikes_per_firing_entry},
    {"sparsity_t3_per_entry", "1 - mean_spikes_per_entry / 3", &F::sparsity_t3_per_entry},
    {"sparsity_t3_per_firing_entry", "1 - mean_spikes_per_firing_entry / 3",
     &F::sparsity_t3_per_firing_entry},
    {"sparsity_t3_clamped_to_7", "silent share of 3 timesteps, larger counts sent as 7",
     &F::sparsity_t3_clamped_to_7},
    {"sparsity_t3_low_bits", "silent share of 3 timesteps, larger counts cut to 3 bits",
     &F::sparsity_t3_low_bits},
    {"sparsity_t3_dropped_above_7", "silent share of 3 timesteps, larger counts not sent",
     &F::sparsity_t3_dropped_above_7},
    {"firing_rate_ternary", "mean |spike| over entries and largest_count timesteps",
     &F::firing_rate_ternary},
    {"firing_rate_bitwise_bidirectional", "mean |spike| over entries and count_bits timesteps",
     &F::firing_rate_bitwise_bidirectional},
    {"firing_rate_twos_complement", "mean spike over entries and the fewest timesteps",
     &F::firing_rate_twos_complement},
    {"sparsity_all_bits", "1 - firing_rate_bitwise_bidirectional", &F::sparsity_all_bits},
    {"active_share", "entries that fire", &F::active_share},
    {"active_share_bitwise_steps", "entries that fire / (entries x count_bits)",
     &F::active_share_bitwise_steps},
    {"active_share_ternary_steps", "entries that fire / (entries x largest_count)",
     &F::active_share_ternary_steps},
};
static_assert(sizeof(SpikeFigures) == std::size(kFields) * sizeof(double), "a field is not listed");

}  // namespace

std::span<const FigureField> figure_fields() { return kFields; }

// The sum over the core of weight(|s|).
template <typename Weight>
int64_t SpikeStatistics::sum_bins(Weight weight) const {
  int64_t sum = 0;
  for (int count = 0; count < kBins; ++count) sum += histogram(count) * weight(count);
  return sum;
}

int64_t SpikeStatistics::count_sum() const {
  return sum_bins([](int64_t count) { return count; }) + tail_.count_sum;
}

int64_t SpikeStatistics::spike_sum() const {
  return sum_bins(one_bits) + tail_.positive_spike_sum + tail_.negative_spike_sum;
}

// The bits of -c over T timesteps are those of c - 1 inverted.
int64_t SpikeStatistics::twos_complement_spikes(int64_t timesteps) const {
  int64_t sum = tail_.positive_spike_sum;
  sum += tail_.negative * timesteps - tail_.negative_inverse_sum;
  for (int count = 1; count <= kCoreLimit; ++count) {
    sum += signed_bin(count) * one_bits(count);
    sum += signed_bin(-count) * (timesteps - one_bits(count - 1));
  }
  return sum;
}

void SpikeStatistics::add_rates(SpikeFigures& f) const {
  const auto rate = [&](Coding coding, auto spikes) {
    const int64_t timesteps = minimal_timesteps(coding, range());
    return static_cast<double>(spikes(timesteps)) / (f.entries * static_cast<double>(timesteps));
  };
  const auto firing = [&](int64_t) { return entries() - silent(); };
  f.largest_count =
      static_cast<double>(std::max(int64_t{range().highest}, -int64_t{range().lowest}));
  f.count_bits = static_cast<double>(minimal_timesteps(Coding::kBitwiseBidirectional, range()));
  f.firing_rate_ternary = rate(Coding::kTernary, [&](int64_t) { return count_sum(); });
  f.firing_rate_bitwise_bidirectional =
      rate(Coding::kBitwiseBidirectional, [&](int64_t) { return spike_sum(); });
  f.firing_rate_twos_complement =
      rate(Coding::kTwosComplement, [&](int64_t t) { return twos_complement_spikes(t); });
  f.sparsity_all_bits = 1.0 - f.firing_rate_bitwise_bidirectional;
  f.active_share = 1.0 - f.silent_share;
  f.active_share_bitwise_steps = rate(Coding::kBitwiseBidirectional, firing);
  f.active_share_ternary_steps = rate(Coding::kTernary, firing);
}

SpikeFigures SpikeStatistics::figures() const {
  SpikeFigures f;
  if (entries() == 0) return f;
  const auto n = static_cast<double>(entries());
  const auto firing = static_cast<double>(entries() - silent());
  const auto spikes = static_cast<double>(spike_sum());
  const auto share = [n](int64_t part) { return static_cast<double>(part) / n; };
  const auto window_sparsity = [&](int64_t sum) { return 1.0 - share(sum) / kWindow; };

  f.entries = n;
  f.silent_share = share(silent());
  f.share_up_to_7 = share(sum_bins([](int64_t c) { return int64_t{c <= 7}; }));
  f.share_above_16 = share(sum_bins([](int64_t c) { return int64_t{c > 16}; }) + tail());
  f.share_beyond_core = share(tail());
  f.silent_channel_share = static_cast<double>(silent_channels()) / static_cast<double>(channels());
  f.mean_count = share(count_sum());
  f.mean_spikes_per_entry = spikes / n;
  f.mean_spikes_per_firing_entry = firing > 0 ? spikes / firing : 0.0;

  f.sparsity_t3_per_entry = 1.0 - f.mean_spikes_per_entry / kWindow;
  f.sparsity_t3_per_firing_entry = 1.0 - f.mean_spikes_per_firing_entry / kWindow;
  f.sparsity_t3_clamped_to_7 = window_sparsity(
      sum_bins([](int64_t c) { return one_bits(std::min<int64_t>(c, kWindowLargest)); }) +
      tail() * kWindow);
  f.sparsity_t3_low_bits = window_sparsity(
      sum_bins([](int64_t c) { return one_bits(c & kWindowLargest); }) + tail_.low_spike_sum);
  f.sparsity_t3_dropped_above_7 =
      window_sparsity(sum_bins([](int64_t c) { return c <= kWindowLargest ? one_bits(c) : 0; }));

  add_rates(f);
  return f;
}

}  // namespace spb::spike
