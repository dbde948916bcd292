// Spike counts and spike trains against the reference implementation, as
// tools/make_golden/spiking.py stored them; where the reference fails, what is done instead.
#include <gtest/gtest.h>

#include <bit>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/test_source.h"
#include "io/json.h"
#include "spike/codec/codec.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {
namespace {

using io::Json;

Json read_fixture(const std::string& name) {
  return io::read_json_file(test::source_root() + "/tests/fixtures/spike/" + name);
}

std::vector<float> floats_of(const Json& stored) {
  std::vector<float> values;
  for (const Json& bits : stored) values.push_back(std::bit_cast<float>(bits.get<int32_t>()));
  return values;
}

using Counts = std::vector<int32_t>;

// The thresholds and whole counts of one case.
struct Fired {
  std::vector<float> thresholds;
  Counts counts;
};

Fired fire(const Json& stored) {
  const std::vector<float> x = floats_of(stored["x"]);
  const Shape shape{stored["shape"][0].get<int64_t>(), stored["shape"][1].get<int64_t>()};
  Fired fired{std::vector<float>(static_cast<size_t>(shape[0]), NAN), Counts(x.size(), 1 << 30)};
  Tensor core(DType::kI8, shape);
  SpikeCounts out;
  out.core = core.view();
  out.thresholds = {fired.thresholds.data(), Shape{shape[0]}};
  ThresholdSettings settings;
  settings.k = stored["k"].get<double>();
  settings.bf16_mean = stored["bf16_mean"].get<bool>();
  Context context(2);
  spike_threshold(context, {{x.data(), shape}, settings, &out});
  join_counts(out, {fired.counts.data(), shape});
  return fired;
}

// The reference sums in another order: f32 thresholds may differ in their last bits. Its counts
// never do here: the stored quotients keep away from ties, or the sum is exact.
TEST(SpikeGolden, ThresholdsAndCounts) {
  int cases = 0;
  const Json fixture = read_fixture("threshold.json");
  for (const Json& stored : fixture["cases"]) {
    SCOPED_TRACE(stored["name"].get<std::string>());
    const Fired fired = fire(stored);
    const std::vector<float> thresholds = floats_of(stored["thresholds"]);
    ASSERT_EQ(fired.thresholds.size(), thresholds.size());
    for (size_t m = 0; m < thresholds.size(); ++m) {
      const bool exact = stored["bf16_mean"].get<bool>() || stored["name"] == "ties";
      EXPECT_NEAR(fired.thresholds[m], thresholds[m], exact ? 0.0f : 4e-7f * thresholds[m]);
    }
    EXPECT_EQ(fired.counts, stored["counts"].get<Counts>());
    ++cases;
  }
  EXPECT_EQ(cases, 14);
}

// Counts without a negative one make the reference raise when its spike coding is installed, and
// give counts when it is not. Here they are counts like others.
TEST(SpikeGolden, RowsWithoutNegativeDrivesAreNoError) {
  std::vector<std::string> refused;
  const Json fixture = read_fixture("threshold.json");
  for (const Json& stored : fixture["cases"]) {
    if (stored["reference_error"].is_null()) continue;
    refused.push_back(stored["name"].get<std::string>());
    EXPECT_EQ(stored["reference_error"],
              "ValueError: x_zero is required for bidirectional mode when x is non-negative.");
    EXPECT_EQ(fire(stored).counts, stored["counts"].get<Counts>());
  }
  EXPECT_EQ(refused, (std::vector<std::string>{"zeros", "no_negative"}));
}

Coding coding_of(const Json& stored) {
  const auto name = stored["coding"].get<std::string>();
  if (name == "bidirectional") return Coding::kBitwiseBidirectional;
  if (name == "twos_complement") return Coding::kTwosComplement;
  return *parse_coding(name);
}

struct Train {
  Tensor spikes;
  std::string text;  // as stored: '-', '0' or '+' for each spike
};

Train encode(const Json& stored, int64_t timesteps) {
  const auto counts = stored["counts"].get<Counts>();
  const auto n = static_cast<int64_t>(counts.size());
  Train train{Tensor(DType::kI8, Shape{timesteps, n}), ""};
  Context context(2);
  encode_spikes(context, {{counts.data(), Shape{n}},
                          coding_of(stored),
                          BitOrder::kMostSignificantFirst,
                          train.spikes.view()});
  for (int64_t i = 0; i < timesteps * n; ++i) train.text += "-0+"[train.spikes.as<int8_t>()[i] + 1];
  return train;
}

std::string refusal(const Json& stored, int64_t timesteps) {
  try {
    encode(stored, timesteps);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

int64_t minimal(const Json& stored) {
  const auto counts = stored["counts"].get<Counts>();
  return minimal_timesteps(coding_of(stored),
                           count_range({counts.data(), Shape{std::ssize(counts)}}));
}

// Trains that the reference makes right: the same spikes and the same rate.
void expect_same_train(const Json& stored) {
  const auto timesteps = stored["timesteps"].get<int64_t>();
  const Train train = encode(stored, timesteps);
  EXPECT_EQ(train.text, stored["train"].get<std::string>());
  EXPECT_FLOAT_EQ(static_cast<float>(firing_rate(train.spikes.view())),
                  std::bit_cast<float>(stored["firing_rate_bits"].get<int32_t>()));
  if (stored["explicit"].get<bool>()) return;
  // Its two's complement takes one timestep more than needed when the lowest count is a power of 2.
  const bool longer = stored["coding"] == "twos_complement" && stored["name"] == "byte";
  EXPECT_EQ(minimal(stored), timesteps - (longer ? 1 : 0));
}

TEST(SpikeGolden, Trains) {
  int same = 0, refused = 0;
  const Json fixture = read_fixture("codec.json");
  for (const Json& stored : fixture["cases"]) {
    SCOPED_TRACE(stored["coding"].get<std::string>() + " " + stored["name"].get<std::string>());
    if (!stored["reference_error"].is_null()) {  // both refuse negative counts without a sign
      EXPECT_EQ(stored["name"], "negative");
      EXPECT_NE(refusal(stored, 8).find("expected none below 0"), std::string::npos);
      ++refused;
    } else if (stored["decoded"] == stored["counts"]) {
      expect_same_train(stored);
      ++same;
    } else {  // the reference drops spikes or bits in silence
      EXPECT_EQ(stored["name"], "too_short");
      EXPECT_NE(refusal(stored, stored["timesteps"].get<int64_t>()).find("expected at least"),
                std::string::npos);
      ++refused;
    }
  }
  EXPECT_EQ(same, 13);
  EXPECT_EQ(refused, 7);
}

// A node of the reference keeps the timesteps of its first call and truncates the second one; here
// nothing is remembered.
TEST(SpikeGolden, CallsDoNotDependOnEarlierOnes) {
  const Json fixture = read_fixture("codec.json");
  const Json& stored = fixture["second_call"];
  EXPECT_EQ(stored["counts"], Json({5}));
  EXPECT_EQ(stored["decoded"], 2);
  const Json again = {{"coding", "binary"}, {"counts", {5}}};
  EXPECT_EQ(minimal(again), 5);
  EXPECT_EQ(encode(again, 5).text, "+++++");
  EXPECT_NE(refusal(again, 2), "accepted");
}

}  // namespace
}  // namespace spb::spike
