#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/error.h"
#include "model/state.h"
#include "model/weights.h"

namespace spb::model {
namespace {

TEST(Presets, AreConsistentAndHaveThePublishedSizes) {
  for (const std::string_view name : preset_names()) {
    EXPECT_NO_THROW(check_config(preset(name), std::string(name)));
  }
  EXPECT_NEAR(static_cast<double>(count_parameters(preset("spikingbrain-7b")).total), 7.62e9,
              0.02e9);
  EXPECT_NEAR(static_cast<double>(count_parameters(preset("qwen2.5-7b")).total), 7.62e9, 0.01e9);
  EXPECT_NEAR(static_cast<double>(count_parameters(preset("llama-3.2-1b")).total), 1.236e9,
              0.001e9);
  EXPECT_NEAR(static_cast<double>(count_parameters(preset("smollm2-135m")).total), 134.5e6, 0.1e6);
  EXPECT_THROW(preset("gpt-5"), Error);
}

TEST(Presets, SpikingBrain7bAlternatesLinearAndWindowLayers) {
  const ModelConfig config = preset("spikingbrain-7b");
  for (size_t i = 0; i < config.layers.size(); ++i) {
    EXPECT_EQ(config.layers[i].mixers,
              std::vector<Mixer>{i % 2 == 0 ? Mixer::kLinear : Mixer::kWindow});
  }
}

TEST(Presets, SpikingBrain76bHas76BillionParametersOf12Active) {
  const ModelConfig config = preset("spikingbrain-76b");
  const ParameterCount count = count_parameters(config);
  EXPECT_NEAR(static_cast<double>(count.total), 76e9, 0.1e9);
  EXPECT_NEAR(static_cast<double>(count.active), 12e9, 0.2e9);
  EXPECT_EQ(config.layers_with(Mixer::kFull), 4);
  EXPECT_EQ(config.layers_with(Mixer::kLinear), 28);
  EXPECT_EQ(config.layers_with(FeedForward::kDense), 7);
}

TEST(StateBytes, OfThe7bAreConstantOnceTheWindowIsFull) {
  const ModelConfig config = preset("spikingbrain-7b");
  const StateOptions options{.max_chunk = 1, .cache_dtype = DType::kBF16};
  const StateBytes at_8k = state_bytes(config, options, 8192);
  EXPECT_EQ(at_8k.recurrent, 14 * 4 * 128 * 128 * 4);    // 3.5 MiB
  EXPECT_EQ(at_8k.window, 14 * 4096 * 2 * 4 * 128 * 2);  // 112 MiB
  EXPECT_EQ(at_8k.total(), state_bytes(config, options, 1 << 22).total());
}

TEST(StateBytes, OfCodesAreAByteForEachNumberAndAScaleForEachHead) {
  ModelConfig config = preset("spikingbrain-7b");
  const StateBytes half = state_bytes(config, {.max_chunk = 1}, 8192);
  EXPECT_EQ(half.window, 14 * 4096 * 2 * 4 * 128 * 2);
  config.spikes.emplace();
  const StateBytes codes = state_bytes(config, {.max_chunk = 1}, 8192);
  EXPECT_EQ(codes.window, 14 * 4096 * 2 * 4 * (128 + 4));
  EXPECT_EQ(codes.recurrent, half.recurrent);
}

TEST(CheckConfig, NamesTheFieldThatIsWrong) {
  const std::vector<std::pair<const char*, std::function<void(ModelConfig&)>>> cases = {
      {"hidden size", [](ModelConfig& c) { c.hidden_size = 0; }},
      {"hidden size", [](ModelConfig& c) { c.hidden_size = int64_t{1} << 62; }},
      {"key/value heads", [](ModelConfig& c) { c.num_kv_heads = 3; }},
      {"key/value heads", [](ModelConfig& c) { c.num_kv_heads = 0; }},
      {"head dimension", [](ModelConfig& c) { c.head_dim = 63; }},
      {"sliding window", [](ModelConfig& c) { c.window_size = 0; }},
      {"vocabulary", [](ModelConfig& c) { c.vocab_size = -1; }},
      {"layers", [](ModelConfig& c) { c.layers.clear(); }},
      {"layers", [](ModelConfig& c) { c.layers = uniform_layers(5000, Mixer::kFull); }},
      {"mixer window is listed twice",
       [](ModelConfig& c) {
         c.layers[1].mixers = {Mixer::kWindow, Mixer::kWindow};
       }},
      {"layer 2: expected at least one mixer", [](ModelConfig& c) { c.layers[2].mixers.clear(); }},
      {"experts per token",
       [](ModelConfig& c) {
         c.layers[0].feed_forward = FeedForward::kMoe;
         c.moe = {.num_experts = 4, .experts_per_token = 5, .expert_size = 8};
       }},
      {"number of experts", [](ModelConfig& c) { c.layers[0].feed_forward = FeedForward::kMoe; }},
      {"sink tokens", [](ModelConfig& c) { c.sink_tokens = c.context_length + 1; }},
      {"sink tokens", [](ModelConfig& c) { c.sink_tokens = -1; }},
      {"tied gate", [](ModelConfig& c) { c.tied_gate = true; }},
      {"epsilon", [](ModelConfig& c) { c.norm_eps = NAN; }},
      {"theta", [](ModelConfig& c) { c.rope_theta = -1; }},
      {"gate rank", [](ModelConfig& c) { c.gate_low_rank = -1; }},
      {"spike k", [](ModelConfig& c) { c.spikes = SpikeConfig{NAN}; }},
      {"normalizer", [](ModelConfig& c) { c.gate_logit_normalizer = 0; }},
  };
  for (const auto& [field, spoil] : cases) {
    ModelConfig config = preset("tiny-hybrid");
    spoil(config);
    try {
      check_config(config, "file.gguf");
      FAIL() << field;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("file.gguf"), std::string::npos) << message;
      EXPECT_NE(message.find(field), std::string::npos) << message;
    }
  }
}

}  // namespace
}  // namespace spb::model
