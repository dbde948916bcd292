#include "spike/statistics/statistics.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <set>

#include "core/test_tensors.h"

namespace spb::spike {
namespace {

// Given counts in the form in which spike_threshold returns them.
class Spikes {
 public:
  Spikes(const std::vector<int32_t>& counts, int64_t channels)
      : counts_(counts),
        core_(DType::kI8, Shape{static_cast<int64_t>(counts.size()) / channels, channels}) {
    out.core = core_.view();
    for (size_t i = 0; i < counts.size(); ++i) {
      const int32_t core = std::clamp(counts[i], -127, 127);
      core_.as<int8_t>()[i] = static_cast<int8_t>(core);
      if (core == counts[i]) continue;
      const auto index = static_cast<int32_t>(i);
      const auto width = static_cast<int32_t>(channels);
      out.bursts.push_back({index / width, index % width, counts[i] - core});
    }
  }
  // What every way of adding them must equal.
  double mean(const std::function<double(int64_t)>& of) const {
    double sum = 0;
    for (const int32_t s : counts_) sum += of(s);
    return sum / static_cast<double>(counts_.size());
  }
  SpikeCounts out;

 private:
  std::vector<int32_t> counts_;
  Tensor core_;
};

std::vector<int32_t> random_counts(Rng& rng, int64_t size, bool bursts) {
  std::vector<int32_t> counts(static_cast<size_t>(size));
  for (int32_t& s : counts) {
    s = static_cast<int32_t>(rng.normal() * 4.0f);
    if (bursts && rng.uniform() < 0.05) s *= 1000;
  }
  return counts;
}

int64_t bits(int64_t count) { return std::popcount(static_cast<uint64_t>(std::abs(count))); }

SpikeStatistics statistics_of(const Spikes& spikes) {
  Context context(2);
  SpikeStatistics statistics;
  statistics.add(context, spikes.out);
  return statistics;
}

void expect_equal(const SpikeStatistics& a, const SpikeStatistics& b) {
  for (int c = 0; c < SpikeStatistics::kBins; ++c) EXPECT_EQ(a.histogram(c), b.histogram(c)) << c;
  EXPECT_EQ(a.tail(), b.tail());
  EXPECT_TRUE(std::equal(a.fired().begin(), a.fired().end(), b.fired().begin(), b.fired().end()));
  const SpikeFigures x = a.figures(), y = b.figures();
  for (const FigureField& f : figure_fields()) EXPECT_EQ(x.*f.value, y.*f.value) << f.name;
}

// Figures of two sites pooled are those of all their counts; silent channels are counted apart.
TEST(SpikeStatistics, PoolsNeuronsOfOtherSites) {
  Rng rng(11);
  const std::vector<int32_t> narrow = random_counts(rng, 3 * 20, true);
  std::vector<int32_t> wide = random_counts(rng, 5 * 40, true);
  for (size_t i = 0; i < wide.size(); i += 5) wide[i] = 0;
  std::vector<int32_t> all = narrow;
  all.insert(all.end(), wide.begin(), wide.end());
  SpikeStatistics pooled;
  pooled.pool(statistics_of(Spikes(narrow, 3)));
  pooled.pool(statistics_of(Spikes(wide, 5)));
  EXPECT_EQ(pooled.channels(), 8);
  EXPECT_EQ(pooled.silent_channels(), 1);
  const SpikeFigures f = pooled.figures(), expected = statistics_of(Spikes(all, 1)).figures();
  for (const FigureField& field : figure_fields()) {
    if (field.name == "silent_channel_share") continue;
    EXPECT_EQ(f.*field.value, expected.*field.value) << field.name;
  }
  EXPECT_EQ(f.silent_channel_share, 1.0 / 8);
}

TEST(SpikeStatistics, FiguresFollowTheirDefinitions) {
  Rng rng(1);
  for (const bool bursts : {false, true}) {
    for (const int64_t channels : {1, 3, 7, 97}) {
      const std::vector<int32_t> counts = random_counts(rng, channels * 61, bursts);
      const Spikes spikes(counts, channels);
      const SpikeFigures f = statistics_of(spikes).figures();
      const auto mean = [&](const std::function<double(int64_t)>& of) { return spikes.mean(of); };
      const auto share = [&](const std::function<bool(int64_t)>& of) {
        return mean([&](int64_t s) { return of(s) ? 1.0 : 0.0; });
      };
      const double firing = share([](int64_t s) { return s != 0; });
      const double spikes_per_entry = mean([](int64_t s) { return bits(s); });
      const auto window = [&](const std::function<int64_t(int64_t)>& sent) {
        return 1 - mean([&](int64_t s) { return bits(sent(std::abs(s))); }) / 3;
      };
      EXPECT_EQ(f.entries, static_cast<double>(channels * 61));
      EXPECT_DOUBLE_EQ(f.silent_share, share([](int64_t s) { return s == 0; }));
      EXPECT_DOUBLE_EQ(f.share_up_to_7, share([](int64_t s) { return std::abs(s) <= 7; }));
      EXPECT_DOUBLE_EQ(f.share_above_16, share([](int64_t s) { return std::abs(s) > 16; }));
      EXPECT_DOUBLE_EQ(f.share_beyond_core, share([](int64_t s) { return std::abs(s) > 127; }));
      EXPECT_DOUBLE_EQ(f.mean_count, mean([](int64_t s) { return std::abs(s); }));
      EXPECT_DOUBLE_EQ(f.mean_spikes_per_entry, spikes_per_entry);
      EXPECT_NEAR(f.mean_spikes_per_firing_entry, spikes_per_entry / firing, 1e-12);
      EXPECT_NEAR(f.sparsity_t3_per_entry, 1 - spikes_per_entry / 3, 1e-12);
      EXPECT_NEAR(f.sparsity_t3_per_firing_entry, 1 - spikes_per_entry / firing / 3, 1e-12);
      EXPECT_NEAR(f.sparsity_t3_clamped_to_7,
                  window([](int64_t c) { return std::min<int64_t>(c, 7); }), 1e-12);
      EXPECT_NEAR(f.sparsity_t3_low_bits, window([](int64_t c) { return c & 7; }), 1e-12);
      EXPECT_NEAR(f.sparsity_t3_dropped_above_7, window([](int64_t c) { return c <= 7 ? c : 0; }),
                  1e-12);
      EXPECT_NEAR(f.active_share, firing, 1e-12);
      EXPECT_NEAR(f.active_share_bitwise_steps, firing / f.count_bits, 1e-12);
      EXPECT_NEAR(f.active_share_ternary_steps, firing / f.largest_count, 1e-12);
    }
  }
}

// The rates are those of the trains that the codec makes.
TEST(SpikeStatistics, FiringRatesAreThoseOfTheCodec) {
  Rng rng(2);
  Context context(1);
  for (int trial = 0; trial < 20; ++trial) {
    const std::vector<int32_t> counts = random_counts(rng, 300, trial % 2 == 1);
    const SpikeFigures f = statistics_of(Spikes(counts, 20)).figures();
    const ConstTensorView view(counts.data(), Shape{300});
    const auto rate = [&](Coding coding) {
      Tensor train(DType::kI8, Shape{minimal_timesteps(coding, count_range(view)), 300});
      encode_spikes(context, {view, coding, BitOrder::kMostSignificantFirst, train.view()});
      return firing_rate(train.view());
    };
    EXPECT_NEAR(f.firing_rate_ternary, rate(Coding::kTernary), 1e-12);
    EXPECT_NEAR(f.firing_rate_bitwise_bidirectional, rate(Coding::kBitwiseBidirectional), 1e-12);
    EXPECT_NEAR(f.firing_rate_twos_complement, rate(Coding::kTwosComplement), 1e-12);
    EXPECT_NEAR(f.sparsity_all_bits, 1 - rate(Coding::kBitwiseBidirectional), 1e-12);
  }
}

TEST(SpikeStatistics, HowItIsAddedDoesNotMatter) {
  Rng rng(3);
  const Spikes spikes(random_counts(rng, 2003 * 53, true), 53);
  const SpikeStatistics expected = statistics_of(spikes);
  for (const int threads : {1, 2, 3, 8}) {
    Context context(threads);
    SpikeStatistics whole, parts, odd, even;
    whole.add(context, spikes.out);
    expect_equal(whole, expected);
    for (int64_t m = 0; m < 2003; m += 211) {
      parts.add(context, spikes.out, m, std::min<int64_t>(211, 2003 - m));
      (m % 2 == 0 ? even : odd).add(context, spikes.out, m, std::min<int64_t>(211, 2003 - m));
    }
    expect_equal(parts, expected);
    SpikeStatistics merged;
    merged.merge(SpikeStatistics());
    merged.merge(odd);
    merged.merge(even);
    merged.merge(SpikeStatistics());
    expect_equal(merged, expected);
  }
}

TEST(SpikeStatistics, ChannelsThatNeverFire) {
  Context context(1);
  SpikeStatistics statistics;
  statistics.add(context, Spikes({0, 1, 0, 0, 0, 0, -300, 0}, 4).out);
  statistics.add(context, Spikes({0, 0, 2, 0}, 4).out);
  EXPECT_EQ(statistics.silent_channels(), 2);
  EXPECT_EQ(statistics.rows(), 3);
  EXPECT_EQ(std::vector<uint8_t>(statistics.fired().begin(), statistics.fired().end()),
            (std::vector<uint8_t>{0, 1, 1, 0}));
}

// Distributions with the report's numbers: the reading that makes them agree, and the other.
TEST(SpikeStatistics, BothReadingsOfTheReportHaveNames) {
  std::vector<int32_t> counts(10000, 0);
  for (size_t i = 1840; i < 10000; ++i) counts[i] = 1;
  // 0.13 more spikes per firing entry: counts of 3 have two bits.
  for (size_t i = 1840; i < 1840 + 1061; ++i) counts[i] = 3;
  const SpikeFigures f = statistics_of(Spikes(counts, 100)).figures();
  EXPECT_NEAR(f.silent_share, 0.184, 1e-9);
  EXPECT_NEAR(f.mean_spikes_per_firing_entry, 1.13, 1e-4);
  EXPECT_NEAR(f.sparsity_t3_per_entry, 0.6926, 1e-3);
  EXPECT_NEAR(f.sparsity_t3_per_firing_entry, 0.6233, 1e-3);
}

TEST(SpikeStatistics, NothingAddedGivesZeros) {
  Context context(1);
  SpikeStatistics statistics;
  statistics.add(context, Spikes({}, 5).out);
  for (const FigureField& f : figure_fields())
    EXPECT_EQ(statistics.figures().*f.value, 0) << f.name;
  const SpikeFigures silent = statistics_of(Spikes({0, 0}, 2)).figures();
  for (const FigureField& f : figure_fields())
    EXPECT_TRUE(std::isfinite(silent.*f.value)) << f.name;
  EXPECT_EQ(silent.silent_share, 1);
  EXPECT_EQ(silent.silent_channel_share, 1);
  EXPECT_EQ(silent.firing_rate_ternary, 0);
}

TEST(SpikeStatistics, FieldsHaveNamesOfTheirOwn) {
  std::set<std::string_view> names;
  for (const FigureField& f : figure_fields()) {
    names.insert(f.name);
    EXPECT_FALSE(f.meaning.empty());
  }
  EXPECT_EQ(names.size(), figure_fields().size());
  EXPECT_FALSE(names.contains("sparsity"));
}

TEST(SpikeStatistics, WrongArgumentsAreNamed) {
  Context context(1);
  SpikeStatistics statistics, other;
  statistics.add(context, Spikes({1, 2, 3}, 3).out);
  other.add(context, Spikes({1, 2}, 2).out);
  const auto message = [](const std::function<void()>& body) -> std::string {
    try {
      body();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message([&] {
              statistics.add(context, Spikes({1, 2}, 2).out);
            }),
            "spike statistics: channels: expected 3 as before, got 2");
  EXPECT_EQ(message([&] { statistics.merge(other); }),
            "spike statistics: channels: expected 3 as before, got 2");
  EXPECT_EQ(message([&] {
              statistics.add(context, Spikes({1, 2, 3}, 3).out, 1, 1);
            }),
            "spike statistics: rows: expected a range inside 1 rows, got 1 + 1");
  EXPECT_EQ(message([&] { static_cast<void>(statistics.histogram(128)); }),
            "spike statistics: bin: expected 0 to 127, got 128");
}

TEST(SiteStatistics, MergeBySite) {
  Context context(1);
  SiteStatistics a, b;
  a[{0, "q_proj", "prompt"}].add(context, Spikes({1, 2}, 2).out);
  b[{0, "q_proj", "prompt"}].add(context, Spikes({0, 3}, 2).out);
  b[{0, "down_proj", "prompt"}].add(context, Spikes({5}, 1).out);
  merge(a, b);
  ASSERT_EQ(a.size(), 2u);
  EXPECT_EQ(a.begin()->first.site, "down_proj");
  EXPECT_EQ((a[{0, "q_proj", "prompt"}].rows()), 2);
}

}  // namespace
}  // namespace spb::spike
