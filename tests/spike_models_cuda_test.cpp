// W8ASpike models on a CUDA device: the logits of the published code in every profile, however the
// prompt is cut. spiking_models_test.cpp says which tokens are stored and why.
#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "golden/golden_logits.h"
#include "model/config.h"
#include "model/random_model.h"

namespace spb::golden {
namespace {

using model::SpikeProfile;

constexpr const char* kFolder = "spiking";
// Relative to the largest |logit|; no count lies near a tie, so that in f32 all are the
// reference's.
constexpr double kTolerance = 1e-5;
// Counts flip where activations are rounded, which a device does between all operators and the
// published code at other places: its own runs in bf16 and in f32 lie 0.12 to 0.17 apart.
constexpr double kBf16Tolerance = 0.3;

std::unique_ptr<Context> cuda_context(DType activations) {
  auto context = std::make_unique<Context>(Device{Device::Type::kCuda, 0}, 1);
  context->set_activation_dtype(activations);
  return context;
}

class SpikingModelCuda : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string reason = cuda::unusable_reason(0);
    if (!reason.empty()) GTEST_SKIP() << reason;
  }

  void load(DType dtype, SpikeProfile profile) {
    context_ = cuda_context(dtype);
    write_config(case_, dtype, io::Json::object(), folder_.path());
    write_weights(case_, dtype, folder_.path());
    model_ = model::Model::load(*context_, folder_.path(), {.profile = profile});
  }

  int64_t total() const { return static_cast<int64_t>(case_.tokens.size()); }

  Tensor run(int64_t prompt, const std::vector<int64_t>& chunk_sizes,
             std::optional<DType> cache = DType::kF32) {
    model::SequenceState state(*model_, {total(), total(), cache});
    return all_logits(*context_, *model_, case_.tokens, state, prompt, chunk_sizes);
  }

  void expect_every_cut_agrees(const std::string& expected_run, double tolerance) {
    const Expected expected = case_.expected(expected_run);
    EXPECT_LE(difference(expected, run(total(), {total()})), tolerance) << "prefill at once";
    EXPECT_LE(difference(expected, run(total(), {7, 1, 9, 2})), tolerance) << "odd chunks";
    EXPECT_LE(difference(expected, run(1, {1})), tolerance) << "decode from the first token";
  }

  Case case_ = read_case(GetParam(), kFolder);
  TemporaryFolder folder_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<model::Model> model_;
};

TEST_P(SpikingModelCuda, EveryProfileAgreesInFloat32) {
  for (const SpikeProfile profile : {SpikeProfile::kReference, SpikeProfile::kExactInteger}) {
    SCOPED_TRACE(static_cast<int>(profile));
    load(DType::kF32, profile);
    expect_every_cut_agrees("f32.reference", kTolerance);
  }
  load(DType::kF32, SpikeProfile::kReport);
  expect_every_cut_agrees("f32.report", kTolerance);
}

TEST_P(SpikingModelCuda, EightBitCachesAreTheReferencesToo) {
  load(DType::kF32, SpikeProfile::kExactInteger);
  const Expected expected = case_.expected("f32.reference");
  EXPECT_LE(difference(expected, run(total(), {total()}, std::nullopt)), kTolerance);
  EXPECT_LE(difference(expected, run(1, {1}, DType::kI8)), kTolerance);
}

TEST_P(SpikingModelCuda, BFloat16StaysNearWhereCountsFlip) {
  const Expected exact = case_.expected("bf16.exact");
  for (const SpikeProfile profile : {SpikeProfile::kReference, SpikeProfile::kExactInteger}) {
    load(DType::kBF16, profile);
    EXPECT_LE(difference(exact, run(total(), {total()})), kBf16Tolerance);
    EXPECT_LE(difference(exact, run(total(), {1})), kBf16Tolerance);
  }
}

TEST_P(SpikingModelCuda, SpikeTrainsAreRefused) {
  load(DType::kF32, SpikeProfile::kExactInteger);
  model::SequenceState state(*model_, {total(), total(), DType::kF32});
  try {
    all_logits(*context_, *model_, case_.tokens, state, total(), {total()}, {nullptr, true});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, SpikingModelCuda, testing::ValuesIn(case_names(kFolder)),
                         [](const auto& instance) { return instance.param; });

// Random weights in both places give the same logits: the same codes, and counts that differ in few
// places at most.
TEST(RandomSpikingModelCuda, HasTheSameWeightsOnBothDevices) {
  const std::string reason = cuda::unusable_reason(0);
  if (!reason.empty()) GTEST_SKIP() << reason;
  model::ModelConfig config = model::preset("tiny-hybrid");
  config.spikes.emplace();
  Context cpu(2);
  const auto on_device = cuda_context(DType::kF32);
  const std::vector<int32_t> tokens = {1, 5, 9, 200, 17, 3, 3, 80, 41, 2};
  std::vector<Tensor> logits;
  for (Context* context : {&cpu, on_device.get()}) {
    const auto model = model::random_model(*context, config, DType::kBF16, 3);
    model::SequenceState state(*model, {64, 64, DType::kF32});
    logits.emplace_back(DType::kF32, Shape{1, config.vocab_size});
    const model::SequenceSlice slice{tokens, &state, model::Logits::kLast};
    model::forward(*context, *model, {&slice, 1}, logits.back());
  }
  double difference = 0;
  double size = 0;
  for (int64_t i = 0; i < config.vocab_size; ++i) {
    difference += std::pow(logits[0].as<float>()[i] - logits[1].as<float>()[i], 2);
    size += std::pow(logits[0].as<float>()[i], 2);
  }
  EXPECT_GT(size, 0);
  EXPECT_LE(std::sqrt(difference / size), 0.05);
}

}  // namespace
}  // namespace spb::golden
