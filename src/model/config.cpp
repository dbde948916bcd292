#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"

namespace spb::model {
namespace {

constexpr std::array<std::string_view, 3> kMixerNames = {"full", "window", "linear"};

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

}  // namespace

std::string_view name(Mixer mixer) { return kMixerNames.at(static_cast<size_t>(mixer)); }

std::optional<Mixer> parse_mixer(std::string_view name) {
  const auto found = std::find(kMixerNames.begin(), kMixerNames.end(), name);
  if (found == kMixerNames.end()) return std::nullopt;
  return static_cast<Mixer>(found - kMixerNames.begin());
}

int64_t ModelConfig::layers_with(Mixer mixer) const {
  return std::count(mixers.begin(), mixers.end(), mixer);
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
  if (config.layers_with(Mixer::kLinear) < config.num_layers()) {
    check_number(source, "RoPE theta", config.rope_theta, 1.0, 1e12);
    check_data(config.head_dim % 2 == 0, "{}: head dimension: RoPE needs an even one, got {}",
               source, config.head_dim);
  }
  if (config.layers_with(Mixer::kWindow) > 0) {
    check_range(source, "sliding window", config.window_size, 1, int64_t{1} << 31);
  }
  if (config.layers_with(Mixer::kLinear) > 0) {
    check_range(source, "gate rank", config.gate_low_rank, 1, 1 << 16);
    check_number(source, "gate logit normalizer", config.gate_logit_normalizer, 1e-3, 1e6);
  }
  if (config.rope_scaling) {
    const ops::Llama3Scaling& scaling = *config.rope_scaling;
    check_number(source, "RoPE scaling factor", scaling.factor, 1.0, 1e6);
    check_number(source, "RoPE low frequency factor", scaling.low_frequency_factor, 1e-3, 1e6);
    check_number(source, "RoPE high frequency factor", scaling.high_frequency_factor,
                 scaling.low_frequency_factor * 1.001, 1e6);
    check_number(source, "RoPE original context", scaling.original_context, 1.0, 1e12);
  }
}

}  // namespace spb::model
