// W8ASpike models against the published code: logits in every profile, codes, counts and spike
// trains, however the prompt is cut.
//
// A count that falls to the other side of a tie moves logits far, so the stored tokens are those
// where no activation lies near one (tools/make_golden/spiking_models.py): in f32 every count is
// the reference's, and what remains is the order of summation.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>

#include "core/test_operators.h"
#include "golden/golden_logits.h"
#include "model/open_model.h"
#include "model/projection_codes.h"

namespace spb::golden {
namespace {

using model::Site;
using model::SpikeProfile;

constexpr const char* kFolder = "spiking";

// Relative to the largest |logit| of a run.
constexpr double kTolerance = 1e-5;
// In bf16 counts flip: the reference rounds thresholds and activations to it, integer products do
// not round code * scale. A flip moves its activation by a whole threshold.
constexpr double kBf16Tolerance = 0.2;

// The counts of every place in the order of the rows.
class CountRecorder : public model::ActivityObserver {
 public:
  struct Place {
    std::vector<int32_t> counts;
    std::vector<float> thresholds;
    int64_t channels = 0;
  };

  void on_activations(int64_t, Site, ConstTensorView) override {}
  void on_spikes(int64_t layer, Site site, const spike::SpikeCounts& fired) override {
    Place& place = places_[{layer, site}];
    place.channels = fired.core.shape()[1];
    const size_t first = place.counts.size();
    for (int64_t row = 0; row < fired.core.shape()[0]; ++row) {
      const auto* core = fired.core.row_as<int8_t>(row);
      place.counts.insert(place.counts.end(), core, core + place.channels);
      place.thresholds.push_back(fired.thresholds.as<float>()[row]);
    }
    for (const spike::Burst& burst : fired.bursts) {
      place.counts[first + static_cast<size_t>(burst.row * place.channels + burst.channel)] +=
          burst.excess;
    }
  }

  const std::map<std::pair<int64_t, Site>, Place>& places() const { return places_; }

 private:
  std::map<std::pair<int64_t, Site>, Place> places_;
};

class SpikingModel : public testing::TestWithParam<std::string> {
 protected:
  void load(DType dtype, SpikeProfile profile) {
    write_config(case_, dtype, io::Json::object(), folder_.path());
    write_weights(case_, dtype, folder_.path());
    model_ = model::Model::load(context_, folder_.path(), {.profile = profile});
  }

  int64_t total() const { return static_cast<int64_t>(case_.tokens.size()); }

  Tensor run(int64_t prompt, const std::vector<int64_t>& chunk_sizes,
             const model::ForwardHooks& hooks = {}) {
    model::SequenceState state(*model_, {total(), total(), cache_dtype_});
    return all_logits(context_, *model_, case_.tokens, state, prompt, chunk_sizes, hooks);
  }

  void expect_every_cut_agrees(const std::string& expected_run, double tolerance) {
    const Expected expected = case_.expected(expected_run);
    EXPECT_LE(difference(expected, run(total(), {total()})), tolerance) << "prefill at once";
    EXPECT_LE(difference(expected, run(total(), {7, 1, 9, 2})), tolerance) << "odd chunks";
    EXPECT_LE(difference(expected, run(case_.prefill, {case_.prefill})), tolerance)
        << "prefill, then decode";
    EXPECT_LE(difference(expected, run(1, {1})), tolerance) << "decode from the first token";
  }

  Case case_ = read_case(GetParam(), kFolder);
  TemporaryFolder folder_;
  Context context_{1};
  std::unique_ptr<model::Model> model_;
  std::optional<DType> cache_dtype_ = DType::kF32;
};

TEST_P(SpikingModel, ReferenceProfileAndIntegerProductsAgreeInFloat32) {
  for (const Isa level : test::isa_levels()) {
    const test::IsaScope scope(level);
    for (const SpikeProfile profile : {SpikeProfile::kReference, SpikeProfile::kExactInteger}) {
      SCOPED_TRACE(fmt::format("{}, profile {}", name(level), static_cast<int>(profile)));
      load(DType::kF32, profile);
      expect_every_cut_agrees("f32.reference", kTolerance);
    }
  }
}

// Codes hold the very numbers that the reference rounds keys and values to: a cache of them is what
// spiking models get.
TEST_P(SpikingModel, EightBitCachesAreTheReferencesAndTheDefault) {
  for (const Isa level : test::isa_levels()) {
    // Tiles round softmax weights to bf16, which moves counts.
    if (level == Isa::kAmx) continue;
    const test::IsaScope scope(level);
    SCOPED_TRACE(name(level));
    load(DType::kF32, SpikeProfile::kExactInteger);
    cache_dtype_ = DType::kI8;
    expect_every_cut_agrees("f32.reference", kTolerance);
    const Tensor codes = run(total(), {total()});
    cache_dtype_ = std::nullopt;
    EXPECT_EQ(test::contents(codes), test::contents(run(total(), {total()})));
    cache_dtype_ = DType::kF32;
    const auto floats = test::contents(run(total(), {total()}));
    EXPECT_LE(test::largest_difference(test::contents(codes), floats), 1e-4);
  }
}

TEST_P(SpikingModel, ReportProfileIsTheReferenceWhoseDownProjectionsTakeSpikes) {
  load(DType::kF32, SpikeProfile::kReport);
  expect_every_cut_agrees("f32.report", kTolerance);
  EXPECT_GT(difference(case_.expected("f32.reference"), run(total(), {total()})), 1e-3)
      << "the spikes should show";
}

// Codes depend on the dtype of the checkpoint: quotients of bf16 numbers are bf16. A few rows at a
// time, since tile units round the activations of long chunks to bf16.
TEST_P(SpikingModel, CheckpointsInBFloat16HaveTheReferencesWeights) {
  load(DType::kBF16, SpikeProfile::kReference);
  const Expected expected = case_.expected("bf16.exact");
  EXPECT_LE(difference(expected, run(total(), {7, 1, 9, 2})), kTolerance);
  EXPECT_LE(difference(expected, run(1, {1})), kTolerance);
}

TEST_P(SpikingModel, BFloat16StaysNearWhereCountsFlip) {
  const Expected exact = case_.expected("bf16.exact");
  const Expected rounded = case_.expected("bf16.reference");
  for (const SpikeProfile profile : {SpikeProfile::kReference, SpikeProfile::kExactInteger}) {
    load(DType::kBF16, profile);
    for (const int64_t chunk : {total(), int64_t{1}}) {
      const Tensor logits = run(total(), {chunk});
      EXPECT_LE(difference(exact, logits), kBf16Tolerance) << "chunks of " << chunk;
      EXPECT_LE(difference(rounded, logits), kBf16Tolerance) << "chunks of " << chunk;
    }
  }
}

TEST_P(SpikingModel, SpikeTrainsGiveTheBitsOfIntegerProducts) {
  CountRecorder recorder;
  for (const SpikeProfile profile : {SpikeProfile::kExactInteger, SpikeProfile::kReport}) {
    load(DType::kF32, profile);
    const Tensor plain = run(total(), {total()});
    const Tensor verified = run(total(), {total()}, {&recorder, true});
    for (int64_t i = 0; i < plain.shape().elements(); ++i) {
      ASSERT_EQ(plain.as<float>()[i], verified.as<float>()[i]);
    }
  }
  int32_t largest = 0;
  for (const auto& [place, fired] : recorder.places()) {
    for (const int32_t count : fired.counts) largest = std::max(largest, std::abs(count));
  }
  EXPECT_GT(largest, 127) << "bursts should take part";
}

INSTANTIATE_TEST_SUITE_P(Cases, SpikingModel, testing::ValuesIn(case_names(kFolder)),
                         [](const auto& instance) { return instance.param; });

// The stored positions' rows of a place; queries have one for each head.
void expect_stored_counts(const Case& model, int64_t heads, const std::string& place,
                          const CountRecorder::Place& fired) {
  const Tensor counts = model.stored("counts." + place);
  const Tensor thresholds = model.stored("thresholds." + place);
  const std::vector<int64_t> positions = model.expected("f32.reference").positions;
  ASSERT_EQ(counts.shape(), (Shape{static_cast<int64_t>(positions.size()) * heads, fired.channels}))
      << place;
  for (int64_t i = 0; i < counts.shape()[0]; ++i) {
    const int64_t row = positions[static_cast<size_t>(i / heads)] * heads + i % heads;
    const float threshold = thresholds.as<float>()[i];
    EXPECT_NEAR(fired.thresholds[static_cast<size_t>(row)], threshold, 2e-6f * threshold)
        << place << ", row " << row;
    const int32_t* got = fired.counts.data() + row * fired.channels;
    const auto* wanted = counts.view().row_as<int32_t>(i);
    EXPECT_TRUE(std::equal(got, got + fired.channels, wanted)) << place << ", row " << row;
  }
}

TEST(SpikingActivity, ObserversSeeTheReferencesCountsInEveryProfile) {
  Context context(1);
  for (const char* name : {"linear_g1_d64", "hybrid_g2_d64"}) {
    const Case golden = read_case(name, kFolder);
    TemporaryFolder folder;
    write_config(golden, DType::kF32, io::Json::object(), folder.path());
    write_weights(golden, DType::kF32, folder.path());
    for (const SpikeProfile profile : {SpikeProfile::kExactInteger, SpikeProfile::kReference}) {
      const auto model = model::Model::load(context, folder.path(), {.profile = profile});
      const auto total = static_cast<int64_t>(golden.tokens.size());
      model::SequenceState state(*model, {total, total, DType::kF32});
      CountRecorder recorder;
      all_logits(context, *model, golden.tokens, state, total, {5, 3}, {&recorder, false});
      for (const auto& [where, fired] : recorder.places()) {
        const auto& [layer, site] = where;
        expect_stored_counts(golden, site == Site::kQuery ? model->config().num_heads : 1,
                             fmt::format("{}.{}", layer, model::name(site)), fired);
      }
      EXPECT_EQ(recorder.places().count({1, Site::kQuery}),
                model->config().layer(1).has(model::Mixer::kWindow));
      EXPECT_EQ(recorder.places().count({0, Site::kFeedForwardOutput}), 0);
    }
  }
}

// All codes of the stored rows, among them a row of zeros, one of ties and one far beyond int8.
TEST(SpikingCodes, AreTheReferencesForBothLoadDtypes) {
  Context context(2);
  const Case golden = read_case("linear_g2_d128", kFolder);
  const std::string matrix = "model.layers.1.attn.k_proj";
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    TemporaryFolder folder;
    write_config(golden, dtype, io::Json::object(), folder.path());
    write_weights(golden, dtype, folder.path());
    const model::OpenModel opened = model::open_model(folder.path());
    const model::ModelWeights weights =
        model::bind_weights(opened.config, *opened.source, opened.naming);
    const model::ProjectionCodes codes(context, weights.layers[1].k);
    const spike::SpikeWeightSource source = codes.source();
    const Tensor expected = golden.stored(fmt::format("codes.{}.{}", name(dtype), matrix));
    std::map<std::pair<int64_t, int64_t>, int32_t> excess;
    for (const spike::CodeExcess& entry : source.residual) {
      excess[{entry.row, entry.column}] = entry.excess;
    }
    int32_t largest = 0;
    for (int64_t row = 0; row < expected.shape()[0]; ++row) {
      for (int64_t column = 0; column < expected.shape()[1]; ++column) {
        const int32_t code = source.codes.row_as<int8_t>(row)[column] + excess[{row, column}];
        ASSERT_EQ(code, expected.view().row_as<int32_t>(row)[column])
            << name(dtype) << " row " << row << " column " << column;
        largest = std::max(largest, std::abs(code));
      }
    }
    EXPECT_GT(largest, 400);
  }
}

}  // namespace
}  // namespace spb::golden
