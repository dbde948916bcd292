// Published shapes as table entries; random weights for them come from `spb synth`.
#include <fmt/ranges.h>

#include <array>
#include <vector>

#include "core/error.h"
#include "model/config.h"

namespace spb::model {
namespace {

struct Preset {
  std::string_view name;
  std::string_view architecture;
  int num_layers, hidden, intermediate, heads, kv_heads, head_dim, vocab;
  int64_t context;
  double norm_eps, rope_theta;
  bool tied, qkv_bias;
  std::vector<LayerConfig> (*layers)(int count);
  int window;
};

std::vector<LayerConfig> transformer(int count) { return uniform_layers(count, Mixer::kFull); }

// The 7B: linear and window layers in turn.
std::vector<LayerConfig> alternating(int count) {
  std::vector<LayerConfig> layers;
  for (int i = 0; i < count; ++i) {
    layers.push_back({{i % 2 == 0 ? Mixer::kLinear : Mixer::kWindow}});
  }
  return layers;
}

// The 76B: every layer runs a linear mixer beside softmax attention, which is full in every
// seventh layer; the first layers and every second one up to the eleventh keep a dense network.
std::vector<LayerConfig> parallel(int count) {
  std::vector<LayerConfig> layers;
  for (int i = 1; i <= count; ++i) {
    const Mixer softmax = i % 7 == 0 ? Mixer::kFull : Mixer::kWindow;
    const bool dense = i <= 3 || (i <= 11 && i % 2 == 1);
    layers.push_back({{Mixer::kLinear, softmax}, dense ? FeedForward::kDense : FeedForward::kMoe});
  }
  return layers;
}

constexpr std::array kPresets = {
    Preset{"spikingbrain-7b", "spikingbrain", 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1e-6,
           1e6, false, true, alternating, 4096},
    Preset{"spikingbrain-76b", "spikingbrain", 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1e-6,
           1e6, false, true, parallel, 4096},
    Preset{"spikingbrain-1b", "spikingbrain", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 1e-5, 5e5,
           true, true, alternating, 4096},
    Preset{"qwen2.5-7b", "qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1e-6, 1e6, false,
           true, transformer, 0},
    Preset{"qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e-6, 1e6, true, true,
           transformer, 0},
    Preset{"llama-3.2-1b", "llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 1e-5, 5e5, true,
           false, transformer, 0},
    Preset{"smollm2-135m", "llama", 30, 576, 1536, 9, 3, 64, 49152, 8192, 1e-5, 1e5, true, false,
           transformer, 0},
    Preset{"tiny-hybrid", "spikingbrain", 4, 256, 512, 4, 2, 64, 512, 4096, 1e-6, 1e6, true, true,
           alternating, 64},
    Preset{"tiny-76b", "spikingbrain", 28, 256, 256, 4, 2, 64, 512, 4096, 1e-6, 1e6, true, true,
           parallel, 64},
};

ModelConfig build(const Preset& p) {
  ModelConfig config;
  config.name = p.name;
  config.architecture = p.architecture;
  config.hidden_size = p.hidden;
  config.intermediate_size = p.intermediate;
  config.num_heads = p.heads;
  config.num_kv_heads = p.kv_heads;
  config.head_dim = p.head_dim;
  config.vocab_size = p.vocab;
  config.context_length = p.context;
  config.norm_eps = p.norm_eps;
  config.rope_theta = p.rope_theta;
  config.tied_embeddings = p.tied;
  config.qkv_bias = p.qkv_bias;
  config.window_size = p.window;
  if (p.name == "llama-3.2-1b") config.rope_scaling = ops::Llama3Scaling{32.0, 1.0, 4.0, 8192.0};
  config.layers = p.layers(p.num_layers);
  if (config.layers_with(FeedForward::kMoe) > 0) {
    config.moe = {.num_experts = 16, .num_shared = 1, .expert_size = p.intermediate};
    config.sink_tokens = 128;
    config.feature_map = ops::FeatureMap::kSigmoid;
    config.tied_gate = true;
  }
  return config;
}

}  // namespace

std::vector<std::string_view> preset_names() {
  std::vector<std::string_view> names;
  for (const Preset& p : kPresets) names.push_back(p.name);
  return names;
}

ModelConfig preset(std::string_view name) {
  for (const Preset& p : kPresets) {
    if (p.name == name) return build(p);
  }
  fail(ErrorKind::kUsage, "preset: expected one of {}, got '{}'", fmt::join(preset_names(), ", "),
       printable(name));
}

}  // namespace spb::model
