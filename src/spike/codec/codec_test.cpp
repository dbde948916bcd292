#include "spike/codec/codec.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/rng.h"
#include "core/test_errors.h"

namespace spb::spike {
namespace {

constexpr int8_t kUntouched = 99;
constexpr BitOrder kOrders[] = {BitOrder::kMostSignificantFirst, BitOrder::kLeastSignificantFirst};
constexpr int32_t kLowest = std::numeric_limits<int32_t>::min();
constexpr int32_t kHighest = std::numeric_limits<int32_t>::max();

using Counts = std::vector<int32_t>;

ConstTensorView view_of(const Counts& counts) {
  return {counts.data(), Shape{static_cast<int64_t>(counts.size())}};
}

// A train of spikes with two bytes behind every row that nobody may write.
class Train {
 public:
  Train(int64_t timesteps, int64_t count)
      : storage_(DType::kI8, Shape{timesteps, count + 2}),
        view_(storage_.view().data(), DType::kI8, Shape{timesteps, count}, count + 2) {
    std::fill_n(storage_.as<int8_t>(), timesteps * (count + 2), kUntouched);
  }
  TensorView view() const { return view_; }
  int8_t& at(int64_t t, int64_t i) const { return view_.row_as<int8_t>(t)[i]; }
  bool gaps_untouched() const {
    for (int64_t t = 0; t < view_.shape()[0]; ++t) {
      const int8_t* gap = view_.row_as<int8_t>(t) + view_.shape()[1];
      if (gap[0] != kUntouched || gap[1] != kUntouched) return false;
    }
    return true;
  }

 private:
  Tensor storage_;
  TensorView view_;
};

Counts every_count(int32_t lowest, int32_t highest) {
  Counts counts(static_cast<size_t>(highest - lowest + 1));
  std::iota(counts.begin(), counts.end(), lowest);
  return counts;
}

class Codec : public ::testing::TestWithParam<Coding> {
 protected:
  void expect_round_trip(const Counts& counts, int64_t timesteps, BitOrder order) {
    const auto n = static_cast<int64_t>(counts.size());
    Train train(timesteps, n);
    encode_spikes(context_, {view_of(counts), GetParam(), order, train.view()});
    EXPECT_TRUE(train.gaps_untouched());
    Counts back(counts.size(), 7777);
    decode_spikes(context_, {train.view(), GetParam(), order, {back.data(), Shape{n}}});
    EXPECT_EQ(back, counts);
  }

  Context context_{2};
};

INSTANTIATE_TEST_SUITE_P(Codings, Codec,
                         ::testing::Values(Coding::kBinary, Coding::kTernary, Coding::kBitwise,
                                           Coding::kBitwiseBidirectional, Coding::kTwosComplement),
                         [](const auto& test) {
                           std::string text(name(test.param));
                           std::replace(text.begin(), text.end(), '-', '_');
                           return text;
                         });

TEST_P(Codec, EveryCountUpTo4096ComesBack) {
  const Counts counts = every_count(is_signed(GetParam()) ? -4096 : 0, 4096);
  const int64_t minimal = minimal_timesteps(GetParam(), {counts.front(), counts.back()});
  EXPECT_EQ(minimal, !is_bitwise(GetParam())                 ? 4096
                     : GetParam() == Coding::kTwosComplement ? 14
                                                             : 13);
  for (const BitOrder order : kOrders) {
    expect_round_trip(counts, minimal, order);
    expect_round_trip(counts, minimal + 3, order);
  }
}

TEST_P(Codec, EverySmallRangeHasItsOwnMinimum) {
  for (int32_t highest = 0; highest <= 40; ++highest) {
    for (int32_t lowest = is_signed(GetParam()) ? -40 : 0; lowest <= 0; ++lowest) {
      const Counts counts = every_count(lowest, highest);
      const int64_t minimal = minimal_timesteps(GetParam(), count_range(view_of(counts)));
      expect_round_trip(counts, minimal, BitOrder::kMostSignificantFirst);
      if (minimal == 1) continue;
      const Train train(minimal - 1, static_cast<int64_t>(counts.size()));
      EXPECT_NE(
          test::message_of(
              ErrorKind::kUsage,
              [&] {
                encode_spikes(context_, {view_of(counts), GetParam(), kOrders[0], train.view()});
              }),
          "nothing was thrown");
      EXPECT_EQ(train.at(0, 0), kUntouched);
    }
  }
}

TEST_P(Codec, TrainsFollowTheDefinition) {
  Rng rng(1);
  const int32_t most = is_bitwise(GetParam()) ? 1 << 20 : 50;
  Counts counts(5003);
  for (int32_t& s : counts) {
    s = static_cast<int32_t>(rng.below(most)) * (is_signed(GetParam()) && rng.below(2) ? -1 : 1);
  }
  const int64_t timesteps = minimal_timesteps(GetParam(), count_range(view_of(counts))) + 1;
  for (const BitOrder order : kOrders) {
    for (const int threads : {1, 3}) {
      Context context(threads);
      const Train train(timesteps, 5003);
      encode_spikes(context, {view_of(counts), GetParam(), order, train.view()});
      int64_t spikes = 0, differences = 0;
      for (int64_t i = 0; i < timesteps * 5003; ++i) {
        const int64_t t = i / 5003, element = i % 5003;
        const int32_t spike =
            spike_at(GetParam(), order, counts[static_cast<size_t>(element)], t, timesteps);
        differences += train.at(t, element) != spike;
        spikes += std::abs(spike);
      }
      EXPECT_EQ(differences, 0);
      EXPECT_DOUBLE_EQ(firing_rate(train.view()),
                       static_cast<double>(spikes) / static_cast<double>(timesteps * 5003));
    }
  }
}

TEST_P(Codec, SilenceTakesOneTimestep) {
  EXPECT_EQ(minimal_timesteps(GetParam(), {0, 0}), 1);
  expect_round_trip({0, 0, 0}, 1, BitOrder::kMostSignificantFirst);
  expect_round_trip({}, 1, BitOrder::kMostSignificantFirst);
  EXPECT_EQ(firing_rate(Train(2, 0).view()), 0);
}

TEST_P(Codec, SpikesThatTheCodingLacksAreNamed) {
  Train train(3, 5000);
  std::fill_n(train.view().row_as<int8_t>(0), 5000, int8_t{0});
  std::fill_n(train.view().row_as<int8_t>(1), 5000, int8_t{1});
  std::fill_n(train.view().row_as<int8_t>(2), 5000, int8_t{1});
  train.at(1, 4321) = has_negative_spikes(GetParam()) ? 2 : -1;
  Counts back(5000);
  EXPECT_EQ(test::message_of(
                ErrorKind::kData,
                [&] {
                  decode_spikes(context_,
                                {train.view(), GetParam(), kOrders[0], {back.data(), Shape{5000}}});
                }),
            fmt::format("decode_spikes: train: expected spikes from {} to 1 in the {} coding, got "
                        "{} at timestep 1, element 4321",
                        has_negative_spikes(GetParam()) ? -1 : 0, name(GetParam()),
                        has_negative_spikes(GetParam()) ? 2 : -1));
}

TEST_P(Codec, TimestepsOutsideTheirRangeAreRefused) {
  const Counts counts = {0};
  const auto refusal = [&](int64_t timesteps) {
    const Train train(timesteps, 1);
    return test::message_of(ErrorKind::kUsage, [&] {
      encode_spikes(context_, {view_of(counts), GetParam(), kOrders[0], train.view()});
    });
  };
  EXPECT_NE(refusal(0), "nothing was thrown");
  EXPECT_EQ(refusal(32), "nothing was thrown");
  EXPECT_EQ(refusal(33) == "nothing was thrown", !is_bitwise(GetParam()));
}

TEST_P(Codec, NegativeCountsNeedASign) {
  if (is_signed(GetParam())) return;
  const Counts counts = {3, -2};
  const Train train(8, 2);
  EXPECT_EQ(test::message_of(
                ErrorKind::kData,
                [&] {
                  encode_spikes(context_, {view_of(counts), GetParam(), kOrders[0], train.view()});
                }),
            fmt::format("spike coding: counts: expected none below 0 for the {} coding, got -2",
                        name(GetParam())));
}

TEST_P(Codec, NamesAreParsed) {
  EXPECT_EQ(parse_coding(name(GetParam())), GetParam());
  EXPECT_EQ(parse_coding("unary"), std::nullopt);
}

TEST(CodecLimits, WholeRangeOf32Bits) {
  Context context(1);
  const Counts counts = {kLowest, kLowest + 1, -1, 0, 1, kHighest};
  for (const Coding coding : {Coding::kBitwiseBidirectional, Coding::kTwosComplement}) {
    EXPECT_EQ(minimal_timesteps(coding, {kLowest, kHighest}), 32);
    const Train train(32, 6);
    Counts back(6);
    encode_spikes(context, {view_of(counts), coding, kOrders[0], train.view()});
    decode_spikes(context, {train.view(), coding, kOrders[0], {back.data(), Shape{6}}});
    EXPECT_EQ(back, counts);
  }
  EXPECT_EQ(minimal_timesteps(Coding::kTernary, {kLowest, 0}), int64_t{1} << 31);
  EXPECT_EQ(minimal_timesteps(Coding::kBitwise, {0, kHighest}), 31);
}

TEST(CodecLimits, TrainsOfMoreThan32BitsAreRefused) {
  Context context(1);
  const Train train(32, 1);
  for (int64_t t = 0; t < 32; ++t) train.at(t, 0) = t == 0;
  Counts back(1);
  EXPECT_EQ(
      test::message_of(ErrorKind::kData,
                       [&] {
                         decode_spikes(
                             context,
                             {train.view(), Coding::kBitwise, kOrders[0], {back.data(), Shape{1}}});
                       }),
      "decode_spikes: train: expected counts of 32 bits, got 2147483648 at element 0");
}

TEST(CodecLimits, TooFewTimestepsAreNamed) {
  Context context(1);
  const Counts counts = {0, 5, -9};
  const Train train(3, 3);
  EXPECT_EQ(test::message_of(ErrorKind::kUsage,
                             [&] {
                               encode_spikes(context,
                                             {view_of(counts), Coding::kBitwiseBidirectional,
                                              kOrders[0], train.view()});
                             }),
            "encode_spikes: timesteps: expected at least 4 to send -9 to 5 in the "
            "bitwise-bidirectional coding, got 3");
}

TEST(JoinCounts, AddsTheBurstsToTheCore) {
  Tensor core(DType::kI8, Shape{2, 3});
  const int8_t values[] = {1, 127, -3, -127, 0, 127};
  std::copy_n(values, 6, core.as<int8_t>());
  SpikeCounts spikes;
  spikes.core = core.view();
  spikes.bursts = {{0, 1, 5}, {1, 0, -1000}};
  Counts counts(6, 7777);
  join_counts(spikes, {counts.data(), Shape{2, 3}});
  EXPECT_EQ(counts, (Counts{1, 132, -3, -1127, 0, 127}));
  spikes.bursts = {{2, 0, 1}};
  EXPECT_EQ(test::message_of(ErrorKind::kUsage,
                             [&] {
                               join_counts(spikes, {counts.data(), Shape{2, 3}});
                             }),
            "join_counts: bursts: expected rows and channels of [2, 3], got row 2, channel 0");
}

}  // namespace
}  // namespace spb::spike
