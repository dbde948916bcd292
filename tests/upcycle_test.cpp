// Files of the whole family: written, read back, refused when they contradict themselves; and dense
// models upcycled to mixtures of experts.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "convert/compare_models.h"
#include "convert/convert.h"
#include "convert/synthesize.h"
#include "core/error.h"
#include "core/test_errors.h"
#include "golden/golden_recipe.h"
#include "model/model.h"
#include "model/open_model.h"

namespace spb {
namespace {

using test::message_of;

using model::FeedForward;
using model::Mixer;

// The structure of the 76B in four layers.
model::ModelConfig small_family() {
  model::ModelConfig config = model::preset("tiny-76b");
  config.layers.resize(4);
  config.layers[3].mixers = {Mixer::kLinear, Mixer::kFull};
  return config;
}

class FamilyFiles : public testing::Test {
 protected:
  std::string synthesize(const model::ModelConfig& config, DType format = DType::kQ8_0) {
    const std::string path = folder_.file("model.gguf");
    convert::synthesize(context_, config, {.format = format}, path);
    return path;
  }

  Context context_{2};
  golden::TemporaryFolder folder_;
};

TEST_F(FamilyFiles, SayEverythingAboutTheModel) {
  std::vector<model::ModelConfig> configs = {model::preset("tiny-76b"), small_family(),
                                             model::preset("tiny-hybrid")};
  configs.push_back(small_family());
  configs.back().branch_weights = {0.5, -2.0, 3.0};
  configs.push_back(small_family());
  configs.back().branch_weights_learned = true;
  configs.back().tied_gate = false;
  configs.push_back(small_family());
  configs.back().layers[1].feed_forward = FeedForward::kNone;
  configs.back().moe = {16, 3, 2, 64, ops::RouterScore::kSigmoid, true};
  for (const model::ModelConfig& config : configs) {
    const model::OpenModel opened = model::open_model(synthesize(config));
    model::ModelConfig expected = config;
    expected.norm_eps = static_cast<float>(config.norm_eps);  // GGUF keeps it so
    EXPECT_EQ(opened.config, expected);
    EXPECT_NO_THROW(bind_weights(opened.config, *opened.source, opened.naming));
  }
}

// Rewrites a file with some of it changed.
struct Change {
  std::function<void(io::GgufMetadata&)> metadata = [](io::GgufMetadata&) {};
  std::function<bool(io::GgufTensorPlan&)> keep = [](io::GgufTensorPlan&) { return true; };
};

std::string rewrite(const std::string& path, const Change& change) {
  const auto file = io::GgufFile::open(path);
  io::GgufMetadata metadata = file->metadata();
  change.metadata(metadata);
  std::vector<io::GgufTensorPlan> plans;
  for (const io::TensorEntry& entry : file->tensors()) {
    io::GgufTensorPlan plan{
        entry.name, entry.view.dtype(), entry.view.shape(),
        [](std::span<std::byte> out) { std::fill(out.begin(), out.end(), std::byte{0}); }};
    if (change.keep(plan)) plans.push_back(plan);
  }
  const std::string out = path + ".changed";
  io::write_gguf(out, metadata, plans);
  return out;
}

TEST_F(FamilyFiles, ThatContradictThemselvesAreRefusedByKeyOrTensor) {
  const std::string good = synthesize(small_family());
  const auto set = [](std::string key, io::GgufValue value) {
    return Change{.metadata = [=](io::GgufMetadata& m) { m.set("spikingbrain." + key, value); }};
  };
  const auto drop = [](const std::string& name) {
    return Change{.keep = [=](io::GgufTensorPlan& plan) { return plan.name != name; }};
  };
  const auto reshape = [](const std::string& name, const Shape& shape) {
    return Change{.keep = [=](io::GgufTensorPlan& plan) {
      if (plan.name == name) plan.shape = shape;
      return true;
    }};
  };
  const auto strings = [](const std::string& text) {
    return io::GgufValue(io::GgufArray(std::vector<std::string>(4, text)));
  };
  const std::vector<std::pair<Change, std::string>> cases = {
      {set("expert_used_count", int64_t{17}), "experts per token"},
      {set("expert_used_count", int64_t{0}), "experts per token"},
      {set("expert_count", int64_t{-1}), "number of experts"},
      {set("expert_score", std::string("dice")), "expert_score"},
      {set("attention.sink_count", int64_t{1} << 40), "sink tokens"},
      {set("attention.sink_count", int64_t{7}), "sink_embd.weight"},
      {set("linear_attention.feature_map", std::string("relu")), "tied gate"},
      {set("layer.mixers", strings("linear+")), "layer.mixers"},
      {set("layer.mixers", strings("linear+linear")), "listed twice"},
      {set("layer.mixers", strings("")), "layer.mixers"},
      {set("layer.feed_forward", strings("huge")), "layer.feed_forward"},
      {set("attention.head_count_kv", int64_t{3}), "key/value heads"},
      {drop("blk.3.ffn_up_exps.weight"), "blk.3.ffn_up_exps.weight"},
      {drop("blk.3.ffn_gate_inp.weight"), "blk.3.ffn_gate_inp.weight"},
      {drop("blk.0.attn_window_norm.weight"), "blk.0.attn_window_norm.weight"},
      {reshape("blk.3.ffn_down_exps.weight", Shape{15, 256, 256}), "blk.3.ffn_down_exps.weight"},
      {reshape("blk.3.ffn_down_exps.weight", Shape{16 * 256, 256}), "blk.3.ffn_down_exps.weight"},
  };
  for (const auto& [change, expected] : cases) {
    const std::string bad = rewrite(good, change);
    const std::string message = message_of([&] { model::Model::load(context_, bad); });
    EXPECT_NE(message.find(expected), std::string::npos) << expected << " / " << message;
  }
}

class Upcycle : public FamilyFiles {
 protected:
  convert::ModelDifference upcycled(const std::string& source,
                                    const convert::ConvertSettings& settings) {
    const std::string output = folder_.file("moe.gguf");
    convert::ConvertSettings forced = settings;
    forced.overwrite = true;
    convert::convert_model(context_, source, output, forced);
    return convert::compare_models(context_, source, output);
  }
};

convert::ConvertSettings experts(int64_t n, int64_t k, int64_t shared) {
  convert::ConvertSettings settings;
  settings.upcycle = convert::UpcycleSettings{};
  settings.upcycle->moe.num_experts = n;
  settings.upcycle->moe.experts_per_token = k;
  settings.upcycle->moe.num_shared = shared;
  return settings;
}

// What two orders of f32 sums differ by in logits: 0.8e-6 to 1.1e-6 of the largest, on different
// instruction sets and however small the routers' deviation is.
constexpr double kRounding = 2e-6;

TEST_F(Upcycle, ExactScalingIsTheDenseModel) {
  const std::string dense = synthesize(model::preset("tiny-hybrid"), DType::kF32);
  for (const auto& [n, k, shared] : {std::tuple(16, 1, 1), {4, 1, 1}, {8, 2, 1}, {4, 3, 2}}) {
    const auto found = upcycled(dense, experts(n, k, shared));
    EXPECT_LE(found.error, kRounding) << n << ' ' << k << ' ' << shared;
    EXPECT_EQ(found.same_choice, found.tokens);
  }
  // Without shared experts the router's deviation is not diluted.
  EXPECT_LE(upcycled(dense, experts(16, 1, 0)).error, 1e-5);
  convert::ConvertSettings settings = experts(4, 2, 1);
  settings.upcycle->moe.renormalize = true;
  EXPECT_LE(upcycled(dense, settings).error, kRounding);
  settings.upcycle->moe = {.num_experts = 4, .num_shared = 1};
  settings.upcycle->moe.score = ops::RouterScore::kSigmoid;
  EXPECT_LE(upcycled(dense, settings).error, kRounding);
}

// Near, as the formula says: a network whose three matrices are scaled by a is not scaled by a^3.
TEST_F(Upcycle, ThePapersScalingIsNear) {
  const std::string dense = synthesize(model::preset("tiny-hybrid"), DType::kF32);
  convert::ConvertSettings settings = experts(16, 1, 1);
  settings.upcycle->scaling = convert::ExpertScaling::kPaper;
  const auto found = upcycled(dense, settings);
  EXPECT_GT(found.error, 1e-5);
  EXPECT_LE(found.error, 0.02);
}

TEST_F(Upcycle, OnlyTheLayersAskedForChange) {
  const std::string dense = synthesize(model::preset("tiny-hybrid"), DType::kF32);
  convert::ConvertSettings settings = experts(4, 1, 1);
  settings.upcycle->layers = {1, 3};
  EXPECT_LE(upcycled(dense, settings).error, kRounding);
  const model::ModelConfig config = model::open_model(folder_.file("moe.gguf")).config;
  EXPECT_EQ(config.layer(0).feed_forward, FeedForward::kDense);
  EXPECT_EQ(config.layer(1).feed_forward, FeedForward::kMoe);
}

TEST_F(Upcycle, RefusesWhatItCannotDo) {
  const std::string dense = synthesize(model::preset("tiny-hybrid"), DType::kF32);
  const auto message = [&](const convert::ConvertSettings& settings, const std::string& source) {
    return message_of([&] { upcycled(source, settings); });
  };
  EXPECT_NE(message(experts(4, 5, 1), dense).find("experts per token"), std::string::npos);
  EXPECT_NE(message(experts(0, 1, 1), dense).find("number of experts"), std::string::npos);
  convert::ConvertSettings settings = experts(4, 1, 1);
  settings.upcycle->layers = {4};
  EXPECT_NE(message(settings, dense).find("layers"), std::string::npos);
  settings.upcycle->layers = {};
  settings.upcycle->router_deviation = 0;
  EXPECT_NE(message(settings, dense).find("router deviation"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(folder_.file("moe.gguf")));
  EXPECT_NO_THROW(upcycled(dense, experts(4, 1, 1)));
  const std::string moe = folder_.file("other.gguf");
  std::filesystem::rename(folder_.file("moe.gguf"), moe);
  EXPECT_NE(message(experts(4, 1, 1), moe).find("already"), std::string::npos);
}

// A GGUF file written as it is keeps every code.
TEST_F(FamilyFiles, WrittenAgainWithoutAFormatComputeTheSame) {
  for (const DType format : {DType::kQ4_0, DType::kQ8_0, DType::kBF16}) {
    const std::string path = synthesize(small_family(), format);
    const std::string again = folder_.file("again.gguf");
    convert::convert_model(context_, path, again, {.overwrite = true});
    EXPECT_EQ(convert::compare_models(context_, path, again).error, 0.0) << name(format);
  }
}

}  // namespace
}  // namespace spb
