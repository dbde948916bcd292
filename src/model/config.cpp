#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"

namespace spb::model {
namespace {

constexpr std::array<std::string_view, kMixerKinds> kMixerNames = {"full", "window", "linear"};
constexpr std::array<std::string_view, 3> kFeedForwardNames = {"dense", "moe", "none"};

template <typename Enum, size_t kCount>
std::optional<Enum> parse(const std::array<std::string_view, kCount>& names,
                          std::string_view name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return static_cast<Enum>(found - names.begin());
}

void check_range(const std::string& source, std::string_view field, int64_t value, int64_t low,
                 int64_t high) {
  check_data(value >= low && value <= high, "{}: {}: expected {} to {}, got {}", source, field, low,
             high, value);
}

void check_number(const std::string& source, std::string_view field, double value, double low,
                  double high) {
  check_data(std::isfinite(value) && value >= low && value <= high,
             "{}: {}: expected {:g} to {:g}, got {:g}", source, field, low, high, value);
}

void check_layers(const ModelConfig& config, const std::string& source) {
  for (int64_t i = 0; i < config.num_layers(); ++i) {
    const std::vector<Mixer>& mixers = config.layer(i).mixers;
    check_data(!mixers.empty(), "{}: layer {}: expected at least one mixer, got none", source, i);
    for (const Mixer mixer : mixers) {
      check_data(std::count(mixers.begin(), mixers.end(), mixer) == 1,
                 "{}: layer {}: mixer {} is listed twice", source, i, name(mixer));
    }
  }
  if (!config.any_parallel()) return;
  for (const double weight : config.branch_weights) {
    check_number(source, "branch weight", weight, -1e6, 1e6);
  }
}

void check_softmax(const ModelConfig& config, const std::string& source) {
  check_number(source, "RoPE theta", config.rope_theta, 1.0, 1e12);
  check_data(config.head_dim % 2 == 0, "{}: head dimension: RoPE needs an even one, got {}", source,
             config.head_dim);
  if (config.layers_with(Mixer::kWindow) > 0) {
    check_range(source, "sliding window", config.window_size, 1, int64_t{1} << 31);
  }
  if (!config.rope_scaling) return;
  const ops::Llama3Scaling& scaling = *config.rope_scaling;
  check_number(source, "RoPE scaling factor", scaling.factor, 1.0, 1e6);
  check_number(source, "RoPE low frequency factor", scaling.low_frequency_factor, 1e-3, 1e6);
  check_number(source, "RoPE high frequency factor", scaling.high_frequency_factor,
               scaling.low_frequency_factor * 1.001, 1e6);
  check_number(source, "RoPE original context", scaling.original_context, 1.0, 1e12);
}

void check_linear(const ModelConfig& config, const std::string& source) {
  check_data(!config.tied_gate || config.feature_map == ops::FeatureMap::kSigmoid,
             "{}: tied gate: expected the feature map sigmoid, got {}", source,
             name(config.feature_map));
  if (config.tied_gate) return;
  check_range(source, "gate rank", config.gate_low_rank, 0, 1 << 16);
  check_number(source, "gate logit normalizer", config.gate_logit_normalizer, 1e-3, 1e6);
}

void check_moe(const ModelConfig& config, const std::string& source) {
  const MoeConfig& moe = config.moe;
  check_range(source, "number of experts", moe.num_experts, 1, 1 << 14);
  check_range(source, "experts per token", moe.experts_per_token, 1, moe.num_experts);
  check_range(source, "shared experts", moe.num_shared, 0, 1 << 10);
  check_range(source, "expert size", moe.expert_size, 1, 1 << 24);
}

void check_sinks(const ModelConfig& config, const std::string& source) {
  constexpr int64_t kMaxSinks = 1 << 16;
  const bool known = config.context_length > 0;
  check_range(source, "sink tokens", config.sink_tokens, 0,
              known ? std::min(kMaxSinks, config.context_length) : kMaxSinks);
}

}  // namespace

std::string_view name(Mixer mixer) { return kMixerNames.at(static_cast<size_t>(mixer)); }

std::optional<Mixer> parse_mixer(std::string_view name) { return parse<Mixer>(kMixerNames, name); }

std::string_view name(FeedForward feed_forward) {
  return kFeedForwardNames.at(static_cast<size_t>(feed_forward));
}

std::optional<FeedForward> parse_feed_forward(std::string_view name) {
  return parse<FeedForward>(kFeedForwardNames, name);
}

bool LayerConfig::has(Mixer mixer) const {
  return std::find(mixers.begin(), mixers.end(), mixer) != mixers.end();
}

int64_t ModelConfig::layers_with(Mixer mixer) const {
  return std::count_if(layers.begin(), layers.end(),
                       [mixer](const LayerConfig& layer) { return layer.has(mixer); });
}

int64_t ModelConfig::layers_with(FeedForward feed_forward) const {
  return std::count_if(layers.begin(), layers.end(), [feed_forward](const LayerConfig& layer) {
    return layer.feed_forward == feed_forward;
  });
}

bool ModelConfig::any_parallel() const {
  return std::any_of(layers.begin(), layers.end(),
                     [](const LayerConfig& layer) { return layer.parallel(); });
}

std::vector<LayerConfig> uniform_layers(int64_t count, Mixer mixer) {
  return std::vector<LayerConfig>(static_cast<size_t>(count), LayerConfig{{mixer}});
}

void check_config(const ModelConfig& config, const std::string& source) {
  check_range(source, "hidden size", config.hidden_size, 1, 1 << 20);
  check_range(source, "feed-forward size", config.intermediate_size, 1, 1 << 24);
  check_range(source, "number of heads", config.num_heads, 1, 1 << 14);
  check_range(source, "number of key/value heads", config.num_kv_heads, 1, config.num_heads);
  check_range(source, "head dimension", config.head_dim, 2, 1 << 14);
  check_range(source, "vocabulary size", config.vocab_size, 1, 1 << 26);
  check_range(source, "number of layers", config.num_layers(), 1, 4096);
  check_range(source, "context length", config.context_length, 0, int64_t{1} << 40);
  check_number(source, "norm epsilon", config.norm_eps, 1e-12, 1.0);
  check_data(config.num_heads % config.num_kv_heads == 0,
             "{}: number of heads: expected a multiple of the {} key/value heads, got {}", source,
             config.num_kv_heads, config.num_heads);
  check_layers(config, source);
  check_sinks(config, source);
  if (config.layers_with(Mixer::kFull) + config.layers_with(Mixer::kWindow) > 0) {
    check_softmax(config, source);
  }
  if (config.layers_with(Mixer::kLinear) > 0) check_linear(config, source);
  if (config.layers_with(FeedForward::kMoe) > 0) check_moe(config, source);
  if (config.spikes) check_spikes(*config.spikes, config.num_layers(), source);
}

}  // namespace spb::model
