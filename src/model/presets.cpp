// Published shapes as table entries; random weights for them come from `spb synth`.
#include <fmt/ranges.h>

#include <array>

#include "core/error.h"
#include "model/config.h"

namespace spb::model {
namespace {

struct Preset {
  std::string_view name;
  std::string_view architecture;
  int layers, hidden, intermediate, heads, kv_heads, head_dim, vocab;
  int64_t context;
  double norm_eps, rope_theta;
  bool tied, qkv_bias;
  bool hybrid;  // layers alternate: linear, window, linear, ...
  int window;
};

constexpr std::array kPresets = {
    Preset{"spikingbrain-7b", "spikingbrain", 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1e-6,
           1e6, false, true, true, 4096},
    Preset{"spikingbrain-1b", "spikingbrain", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 1e-5, 5e5,
           true, true, true, 4096},
    Preset{"qwen2.5-7b", "qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1e-6, 1e6, false,
           true, false, 0},
    Preset{"qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e-6, 1e6, true, true,
           false, 0},
    Preset{"llama-3.2-1b", "llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 1e-5, 5e5, true,
           false, false, 0},
    Preset{"smollm2-135m", "llama", 30, 576, 1536, 9, 3, 64, 49152, 8192, 1e-5, 1e5, true, false,
           false, 0},
    Preset{"tiny-hybrid", "spikingbrain", 4, 256, 512, 4, 2, 64, 512, 4096, 1e-6, 1e6, true, true,
           true, 64},
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
  for (int layer = 0; layer < p.layers; ++layer) {
    const Mixer hybrid = layer % 2 == 0 ? Mixer::kLinear : Mixer::kWindow;
    config.mixers.push_back(p.hybrid ? hybrid : Mixer::kFull);
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
