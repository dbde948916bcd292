#include "spike/spike_matmul/spike_matmul.h"

#include <gtest/gtest.h>

#include <limits>

#include "spike/spike_matmul/spike_matmul_problem.h"

namespace spb::spike {
namespace {

using spb::test::isa_levels;
using spb::test::IsaScope;
using spb::test::same_bits;
using spb::test::StridedMatrix;
using test::add_residual;
using test::Codes;
using test::Counts;
using test::make_counts;
using test::random_codes;
using test::random_counts;

constexpr SpikePath kPaths[] = {SpikePath::kAutomatic, SpikePath::kDense, SpikePath::kEvents,
                                SpikePath::kPlanes};

Tensor random_row(Rng& rng, int64_t columns) {
  Tensor t(DType::kF32, Shape{columns});
  for (int64_t i = 0; i < columns; ++i) t.as<float>()[i] = rng.normal();
  return t;
}

void fill(const StridedMatrix& y, float value) {
  const Shape shape = y.view().shape();
  for (int64_t i = 0; i < shape[0]; ++i) std::fill_n(y.row(i), shape[1], value);
}

struct Case {
  int64_t m, n, k;
};
constexpr Case kCases[] = {{1, 1, 128},   {1, 15, 256},  {1, 17, 384},  {1, 100, 1152},
                           {1, 300, 256}, {2, 16, 128},  {2, 17, 1152}, {5, 100, 256},
                           {5, 1, 384},   {33, 15, 384}, {33, 17, 128}, {70, 100, 256},
                           {70, 49, 1152}};

// Every path on every instruction set turns `before` into the bits of `want` and leaves gaps alone.
// The target's y is set here.
void expect_paths_equal(Context& context, const Counts& s, SpikeMatmulTarget target,
                        const StridedMatrix& before, const StridedMatrix& want) {
  for (const Isa level : isa_levels()) {
    const IsaScope scope(level);
    for (const SpikePath path : kPaths) {
      const StridedMatrix y = before.clone();
      target.y = y.view();
      spike_matmul(context, {&s.view, {&target, 1}, path});
      ASSERT_TRUE(same_bits(y.view(), want.view()))
          << name(level) << " path " << static_cast<int>(path) << " y "
          << want.view().shape().to_string() << " K " << s.core.shape()[1]
          << (target.accumulate ? " accumulating" : "");
      ASSERT_TRUE(y.gaps_untouched());
    }
  }
}

// The bits of the reference, stored and added.
void expect_all_equal(const Codes& w, const Counts& s, bool with_bias, int threads = 2) {
  Rng rng(99);
  const int64_t rows = w.codes.shape()[0];
  const Tensor bias = random_row(rng, rows);
  const ConstTensorView used_bias = with_bias ? ConstTensorView(bias) : ConstTensorView();
  Context context(threads);
  const SpikeWeight weight =
      prepare_spike_weight(context, w.source(), {.channel_major = true, .short_last_group = true});
  StridedMatrix before(s.core.shape()[0], rows, 3);
  for (const bool accumulate : {false, true}) {
    if (accumulate) before.fill_normal(rng, 100.0f);
    const StridedMatrix want = before.clone();
    spike_matmul_reference(s.view, w.source(), used_bias, want.view(), accumulate);
    expect_paths_equal(context, s, {&weight, used_bias, {}, accumulate}, before, want);
  }
}

TEST(SpikeMatmul, EveryPathHasTheBitsOfTheReference) {
  Rng rng(1);
  for (const Case& c : kCases) {
    const Codes w = random_codes(rng, c.n, c.k);
    const Counts s = make_counts(rng, random_counts(rng, c.m, c.k, 0.3));
    expect_all_equal(w, s, c.n % 2 == 0);
  }
}

TEST(SpikeMatmul, ResidualCodesAreExact) {
  Rng rng(2);
  for (const int32_t largest : {130, 254, 2000, kMaxCode}) {
    for (const Case& c : kCases) {
      Codes w = random_codes(rng, c.n, c.k);
      add_residual(rng, w, largest == kMaxCode ? 10 : c.n * c.k / 100, largest);
      const Counts s = make_counts(rng, random_counts(rng, c.m, c.k, 0.3));
      expect_all_equal(w, s, c.n % 2 == 1);
    }
  }
}

TEST(SpikeMatmul, BurstsAreExact) {
  Rng rng(3);
  for (const int32_t largest : {128, 3000, 16319, 16320, kMaxCount}) {
    for (const Case& c : kCases) {
      const Codes w = random_codes(rng, c.n, c.k);
      auto counts = random_counts(rng, c.m, c.k, 0.2);
      counts[0][0] = largest;
      counts.back().back() = -largest;
      // Not every row bursts.
      for (int64_t i = 0; i < c.m; i += 3) {
        const auto channel = static_cast<size_t>(rng.below(c.k));
        counts[static_cast<size_t>(i)][channel] =
            static_cast<int32_t>(rng.below(2 * int64_t{largest} + 1) - largest);
      }
      expect_all_equal(w, make_counts(rng, counts), true);
    }
  }
}

TEST(SpikeMatmul, BurstsMeetResidualCodes) {
  Rng rng(4);
  for (const Case& c : kCases) {
    for (const int32_t largest : {250, kMaxCode}) {
      Codes w = random_codes(rng, c.n, c.k);
      add_residual(rng, w, largest == kMaxCode ? 10 : c.n * c.k / 50, largest);
      auto counts = random_counts(rng, c.m, c.k, 0.5);
      for (auto& row : counts) {
        row[0] = largest == 250 ? 3000 : -kMaxCount;
        row[static_cast<size_t>(rng.below(c.k))] = -200;
      }
      expect_all_equal(w, make_counts(rng, counts), false);
    }
  }
}

// The largest sums that bytes allow: nothing saturates.
TEST(SpikeMatmul, ExtremeCodesAndCounts) {
  Rng rng(5);
  for (const int32_t code : {-128, 127}) {
    for (const int32_t count : {-127, 127, 16319, -kMaxCount}) {
      Codes w = random_codes(rng, 33, 256);
      std::fill_n(w.codes.as<int8_t>(), 33 * 256, static_cast<int8_t>(code));
      const std::vector<std::vector<int32_t>> counts(34, std::vector<int32_t>(256, count));
      expect_all_equal(w, make_counts(rng, counts), false);
    }
  }
}

TEST(SpikeMatmul, CountsUpToThousandsEverywhere) {
  Rng rng(6);
  for (const int64_t m : {1, 3, 40}) {
    Codes w = random_codes(rng, 47, 384);
    add_residual(rng, w, 100, 400);
    auto counts = random_counts(rng, m, 384, 0.1);
    for (auto& row : counts) {
      for (int32_t& count : row) count = static_cast<int32_t>(rng.below(6001) - 3000);
    }
    expect_all_equal(w, make_counts(rng, counts), true);
  }
}

TEST(SpikeMatmul, SilenceGivesTheBias) {
  Rng rng(7);
  for (const int64_t m : {1, 20}) {
    const Codes w = random_codes(rng, 40, 256);
    auto counts = random_counts(rng, m, 256, 0.4);
    std::fill(counts[0].begin(), counts[0].end(), 0);
    if (m > 1) std::fill(counts[17].begin() + 128, counts[17].end(), 0);
    const Counts s = make_counts(rng, counts);
    expect_all_equal(w, s, true);
    Context context(1);
    const SpikeWeight weight = prepare_spike_weight(context, w.source(), {.channel_major = true});
    const Tensor bias = random_row(rng, 40);
    for (const SpikePath path : kPaths) {
      const StridedMatrix y(m, 40);
      const SpikeMatmulTarget target{&weight, bias, y.view()};
      spike_matmul(context, {&s.view, {&target, 1}, path});
      for (int64_t n = 0; n < 40; ++n) EXPECT_EQ(y.at(0, n), bias.as<float>()[n]);
    }
  }
}

TEST(SpikeMatmul, ThreadsDoNotChangeTheBits) {
  Rng rng(8);
  for (const int threads : {1, 2, 3}) {
    Codes w = random_codes(rng, 1100 * threads, 256);
    add_residual(rng, w, 40, 300);
    auto counts = random_counts(rng, threads == 2 ? 37 : 1, 256, 0.3);
    counts[0][5] = 777;
    expect_all_equal(w, make_counts(rng, counts), true, threads);
  }
}

// What would be stored is rounded before it is added: once in the product, once in the sum.
TEST(SpikeMatmul, AccumulatingAddsWhatWouldBeStored) {
  Rng rng(16);
  Context context(2);
  for (const int64_t m : {1, 3, 40}) {
    Codes w = random_codes(rng, 1050, 256);
    add_residual(rng, w, 10, 3000);
    auto counts = random_counts(rng, m, 256, 0.5);
    counts[0][3] = kMaxCount;
    const Counts s = make_counts(rng, counts);
    const Tensor bias = random_row(rng, 1050);
    const SpikeWeight weight = prepare_spike_weight(context, w.source(), {.channel_major = true});
    StridedMatrix before(m, 1050, 2);
    before.fill_normal(rng, 10.0f);
    before.row(0)[0] = std::numeric_limits<float>::infinity();
    const StridedMatrix want(m, 1050, 2);
    SpikeMatmulTarget target{&weight, bias, want.view()};
    spike_matmul(context, {&s.view, {&target, 1}});
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t n = 0; n < 1050; ++n) want.row(i)[n] += before.at(i, n);
    }
    target.accumulate = true;
    expect_paths_equal(context, s, target, before, want);
  }
}

// Targets of different sizes in one call, one with a residual and one without a copy for events,
// and one that is added to.
TEST(SpikeMatmul, TargetsShareTheCounts) {
  Rng rng(9);
  Context context(3);
  const int64_t rows[] = {70, 1, 300};
  for (const int64_t m : {1, 4, 50}) {
    std::vector<Codes> codes;
    std::vector<SpikeWeight> weights;
    for (size_t t = 0; t < 3; ++t) {
      codes.push_back(random_codes(rng, rows[t], 256));
      if (t == 2) add_residual(rng, codes[t], 100, 200);
      weights.push_back(
          prepare_spike_weight(context, codes[t].source(), {.channel_major = t != 1}));
    }
    const Counts s = make_counts(rng, random_counts(rng, m, 256, 0.6));
    for (const SpikePath path : {SpikePath::kAutomatic, SpikePath::kDense, SpikePath::kPlanes}) {
      const StridedMatrix all(m, 371);
      fill(all, 1.5f);
      std::vector<SpikeMatmulTarget> targets;
      int64_t first = 0;
      for (size_t t = 0; t < 3; ++t) {
        // Columns of one wider matrix.
        const TensorView y{all.view().data() + first * 4, DType::kF32, Shape{m, rows[t]},
                           all.view().row_stride_bytes()};
        targets.push_back({&weights[t], {}, y, t == 1});
        first += rows[t];
      }
      spike_matmul(context, {&s.view, targets, path});
      for (size_t t = 0; t < 3; ++t) {
        const StridedMatrix want(m, rows[t]);
        fill(want, 1.5f);
        spike_matmul_reference(s.view, codes[t].source(), {}, want.view(), t == 1);
        EXPECT_TRUE(same_bits(targets[t].y, want.view())) << "target " << t << ", M " << m;
      }
    }
  }
}

// Columns that do not fill the last group, odd ones included.
TEST(SpikeMatmul, LastGroupMayBeShort) {
  Rng rng(13);
  for (const int64_t k : {1, 64, 130, 576}) {
    for (const int64_t m : {1, 3, 40}) {
      Codes w = random_codes(rng, 33, k);
      add_residual(rng, w, 20, 220);
      auto counts = random_counts(rng, m, k, 0.3);
      counts[0].back() = 1000;
      expect_all_equal(w, make_counts(rng, counts), true);
    }
  }
}

TEST(SpikeMatmul, NoRowsAreNothingToDo) {
  Rng rng(10);
  Context context(1);
  const Codes w = random_codes(rng, 20, 128);
  const SpikeWeight weight = prepare_spike_weight(context, w.source());
  float unused = 0;
  int8_t none = 0;
  const SpikeCounts counts{
      TensorView(&none, Shape{0, 128}), TensorView(&unused, Shape{0}), {}, {}, {}};
  const SpikeMatmulTarget target{&weight, {}, TensorView(&unused, Shape{0, 20})};
  spike_matmul(context, {&counts, {&target, 1}});
}

// Rounding happens once per group: for one group of exact sums the result is known.
TEST(SpikeMatmul, OneGroupIsThreeRoundings) {
  Rng rng(11);
  Codes w = random_codes(rng, 16, 128);
  add_residual(rng, w, 10, kMaxCode);
  const Counts s = make_counts(rng, random_counts(rng, 1, 128, 0.1));
  const StridedMatrix y(1, 16);
  Context context(1);
  const SpikeWeight weight = prepare_spike_weight(context, w.source());
  const SpikeMatmulTarget target{&weight, {}, y.view()};
  spike_matmul(context, {&s.view, {&target, 1}});
  for (int64_t n = 0; n < 16; ++n) {
    int64_t exact = 0;
    for (int64_t c = 0; c < 128; ++c) {
      exact += int64_t{w.codes.as<int8_t>()[n * 128 + c]} * s.core.as<int8_t>()[c];
    }
    for (const CodeExcess& e : w.residual) {
      if (e.row == n) exact += int64_t{e.excess} * s.core.as<int8_t>()[e.column];
    }
    const float product = static_cast<float>(exact) * w.scales.as<float>()[n];
    EXPECT_EQ(y.at(0, n), s.thresholds.as<float>()[0] * product);
  }
}

TEST(SpikeMatmul, WeightSaysWhatItHolds) {
  Rng rng(12);
  Context context(2);
  Codes w = random_codes(rng, 20, 256);
  EXPECT_FALSE(SpikeWeight().defined());
  const SpikeWeight plain = prepare_spike_weight(context, w.source());
  EXPECT_EQ(plain.rows(), 20);
  EXPECT_EQ(plain.columns(), 256);
  EXPECT_EQ(plain.bytes(), 32 * (256 + 8));
  EXPECT_FALSE(plain.channel_major());
  EXPECT_EQ(plain.channel_major_bytes(), 0);
  add_residual(rng, w, 10, 1000);
  const SpikeWeight full = prepare_spike_weight(context, w.source(), {.channel_major = true});
  EXPECT_EQ(full.residual_codes(), static_cast<int64_t>(w.residual.size()));
  EXPECT_GT(full.bytes(), plain.bytes());
  EXPECT_EQ(full.channel_major_bytes(), 256 * (256 + 8));
}

TEST(SpikeMatmul, EventsPayWhenManyChannelsAreSilent) {
  for (const Device& device : {Device{}, Device{Device::Type::kCuda, 0}}) {
    EXPECT_FALSE(event_pays(device, 8192, 0.0));
    EXPECT_FALSE(event_pays(device, 8192, least_silence(device) - 0.01));
    EXPECT_TRUE(event_pays(device, 8192, 0.9));
    EXPECT_FALSE(event_pays(device, 16, 0.9));
  }
}

}  // namespace
}  // namespace spb::spike
