// SpikeConfig: where a spiking model spikes, and how finely.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace spb::model {

// Where activations enter matrix products, and can become spikes.
enum class Site {
  kMixerInput,         // queries, keys, values and gate
  kMixerOutput,        // output projection
  kQuery,              // queries of softmax mixers after RoPE; a row is one head of one token
  kFeedForwardInput,   // gate and up
  kFeedForwardOutput,  // down
  kKey,                // keys and values of softmax mixers: never spikes, but rounded to 8 bits
  kValue,
};
inline constexpr int kSites = 7;
inline constexpr int kSpikingSites = 5;  // those before keys and values

// "mixer_in", "mixer_out", "query", "ffn_in", "ffn_out", "key", "value"
std::string_view name(Site site);
std::optional<Site> parse_site(std::string_view name);

// W8ASpike: the inputs of projections become spike counts, their weights 8-bit codes, keys and
// values 8-bit numbers. Embeddings, head, norms, recurrent states and routed experts do not.
struct SpikeConfig {
  double k = 3.0;  // a channel fires round(x / (mean |x| / k)) times
  // Instead of k, by site: empty, or one for each layer. 0: the site takes activations as they are,
  // and in a file its weights are no codes; keys and values are then not rounded.
  std::array<std::vector<double>, kSites> site_k = {};

  double at(int64_t layer, Site site) const {
    const std::vector<double>& own = site_k[static_cast<size_t>(site)];
    return own.empty() ? k : own[static_cast<size_t>(layer)];
  }
  bool operator==(const SpikeConfig&) const = default;
};

// A k for some places.
struct SiteRule {
  std::optional<Site> site;  // none: all that spike
  double k = 0;              // 0: no spikes
  int64_t first_layer = 0;
  int64_t last_layer = std::numeric_limits<int64_t>::max();  // included
};

// "ffn_in=4.5,query=off,0-3:mixer_in=6,all=3": [LAYERS:]SITE=K. Usage error naming `option`.
std::vector<SiteRule> parse_site_rules(const std::string& list, const std::string& option);

// Later rules override earlier ones. Usage error for layers beyond `layers` and a k that is neither
// 0 nor 0.001 to 1000000.
void apply_rules(std::span<const SiteRule> rules, int64_t layers, SpikeConfig& config);

// Sets one place; the rest of the site keeps what it has.
void set_k(SpikeConfig& config, int64_t layers, int64_t layer, Site site, double k);

// Data error naming `source` unless every k is in range, every site has one for each layer or none,
// and keys and values have none.
void check_spikes(const SpikeConfig& config, int64_t layers, const std::string& source);

}  // namespace spb::model
