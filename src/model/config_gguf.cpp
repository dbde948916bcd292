#include "model/config_gguf.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/error.h"
#include "spike/spike_matmul/spike_weight.h"

namespace spb::model {
namespace {

constexpr std::string_view kOurs = "spikingbrain";

// Typed look-up of "<architecture>.<key>".
class Keys {
 public:
  Keys(const io::GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  std::string full(std::string_view key) const { return fmt::format("{}.{}", architecture_, key); }

  int64_t integer(std::string_view key) const {
    const auto value = file_.metadata().get_integer(full(key));
    check_data(value.has_value(), "{}: metadata key '{}' is missing", file_.path(), full(key));
    return *value;
  }
  int64_t integer_or(std::string_view key, int64_t fallback) const {
    return file_.metadata().get_integer(full(key)).value_or(fallback);
  }
  double number_or(std::string_view key, double fallback) const {
    return file_.metadata().get_number(full(key)).value_or(fallback);
  }
  std::optional<std::string> text(std::string_view key) const {
    return file_.metadata().get_string(full(key));
  }

 private:
  const io::GgufFile& file_;
  std::string architecture_;
};

void read_sizes(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  config.hidden_size = keys.integer("embedding_length");
  config.intermediate_size = keys.integer("feed_forward_length");
  config.num_heads = keys.integer("attention.head_count");
  config.num_kv_heads = keys.integer_or("attention.head_count_kv", config.num_heads);
  check_data(config.num_heads > 0, "{}: {}: expected at least 1, got {}", file.path(),
             keys.full("attention.head_count"), config.num_heads);
  config.head_dim = keys.integer_or("attention.key_length", config.hidden_size / config.num_heads);
  config.context_length = keys.integer_or("context_length", 0);
  config.norm_eps = keys.number_or("attention.layer_norm_rms_epsilon", 1e-6);
  config.rope_theta = keys.number_or("rope.freq_base", 10000.0);
  const Shape& table = file.at("token_embd.weight").view.shape();
  check_data(table.rank() == 2, "{}: tensor 'token_embd.weight': expected a matrix, got shape {}",
             file.path(), table.to_string());
  config.vocab_size = table[0];
  config.tied_embeddings = file.find("output.weight") == nullptr;
  config.qkv_bias = file.find("blk.0.attn_q.bias") != nullptr;
}

// What our forward pass does not do must not be ignored silently.
void refuse_unsupported(const io::GgufFile& file, const Keys& keys, const ModelConfig& config) {
  const bool ours = config.architecture == kOurs;
  check_data(ours || keys.integer_or("expert_count", 0) == 0,
             "{}: {}: mixtures of experts of this architecture are not supported", file.path(),
             keys.full("expert_count"));
  const int64_t rotated = keys.integer_or("rope.dimension_count", config.head_dim);
  check_data(rotated == config.head_dim, "{}: {}: expected the head dimension {}, got {}",
             file.path(), keys.full("rope.dimension_count"), config.head_dim, rotated);
  const int64_t value_length = keys.integer_or("attention.value_length", config.head_dim);
  check_data(value_length == config.head_dim, "{}: {}: expected the head dimension {}, got {}",
             file.path(), keys.full("attention.value_length"), config.head_dim, value_length);
  const std::string scaling = keys.text("rope.scaling.type").value_or("none");
  check_data(scaling == "none" || scaling == "llama3", "{}: {}: '{}' is not supported", file.path(),
             keys.full("rope.scaling.type"), printable(scaling));
}

int64_t layer_count(const io::GgufFile& file, const Keys& keys) {
  const int64_t layers = keys.integer("block_count");
  check_data(layers >= 1 && layers <= 4096, "{}: {}: expected 1 to 4096, got {}", file.path(),
             keys.full("block_count"), layers);
  return layers;
}

// One string for each layer; nullptr when the key is absent.
const std::vector<std::string>* layer_strings(const io::GgufFile& file, const Keys& keys,
                                              const std::string& key) {
  const std::vector<std::string>* strings = file.metadata().get_strings(key);
  const int64_t layers = layer_count(file, keys);
  check_data(strings == nullptr || static_cast<int64_t>(strings->size()) == layers,
             "{}: {}: expected one entry for each of {} layers, got {}", file.path(), key, layers,
             strings == nullptr ? 0 : strings->size());
  return strings;
}

// "window" or "linear+full".
std::vector<Mixer> parse_mixers(const std::string& text, const std::string& where) {
  std::vector<Mixer> mixers;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('+', begin), text.size());
    const std::optional<Mixer> mixer = parse_mixer(text.substr(begin, end - begin));
    check_data(mixer.has_value(), "{}: expected full, window or linear joined by '+', got '{}'",
               where, printable(text));
    mixers.push_back(*mixer);
    begin = end + 1;
  }
  return mixers;
}

void read_layers(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  const std::string mixers_key = keys.full("layer.mixers");
  const std::vector<std::string>* mixers = layer_strings(file, keys, mixers_key);
  check_data(mixers != nullptr, "{}: metadata key '{}' is missing", file.path(), mixers_key);
  const std::string networks_key = keys.full("layer.feed_forward");
  const std::vector<std::string>* networks = layer_strings(file, keys, networks_key);
  for (size_t i = 0; i < mixers->size(); ++i) {
    LayerConfig& layer = config.layers.emplace_back();
    layer.mixers = parse_mixers((*mixers)[i], fmt::format("{}: {}", file.path(), mixers_key));
    if (networks == nullptr) continue;
    const std::optional<FeedForward> parsed = parse_feed_forward((*networks)[i]);
    check_data(parsed.has_value(), "{}: {}: expected dense, moe or none, got '{}'", file.path(),
               networks_key, printable((*networks)[i]));
    layer.feed_forward = *parsed;
  }
}

bool flag_or(const io::GgufFile& file, const std::string& key, bool fallback) {
  return file.metadata().get_bool(key).value_or(fallback);
}

void read_moe(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  MoeConfig& moe = config.moe;
  moe.num_experts = keys.integer("expert_count");
  moe.experts_per_token = keys.integer("expert_used_count");
  moe.num_shared = keys.integer_or("expert_shared_count", 0);
  moe.expert_size = keys.integer("expert_feed_forward_length");
  moe.renormalize = flag_or(file, keys.full("expert_weights_norm"), false);
  const std::string score = keys.text("expert_score").value_or("softmax");
  check_data(score == "softmax" || score == "sigmoid",
             "{}: {}: expected softmax or sigmoid, got '{}'", file.path(),
             keys.full("expert_score"), printable(score));
  moe.score = score == "softmax" ? ops::RouterScore::kSoftmax : ops::RouterScore::kSigmoid;
}

void read_branches(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  config.branch_weights_learned = flag_or(file, keys.full("branch_weight.learned"), false);
  for (int kind = 0; kind < kMixerKinds; ++kind) {
    const std::string key = fmt::format("branch_weight.{}", name(static_cast<Mixer>(kind)));
    config.branch_weights[static_cast<size_t>(kind)] = keys.number_or(key, 1.0);
  }
}

void read_linear(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  const std::string map = keys.text("linear_attention.feature_map").value_or("relu");
  const std::optional<ops::FeatureMap> parsed = ops::parse_feature_map(map);
  check_data(parsed.has_value(), "{}: {}: expected relu or sigmoid, got '{}'", file.path(),
             keys.full("linear_attention.feature_map"), printable(map));
  config.feature_map = *parsed;
  config.tied_gate = flag_or(file, keys.full("linear_attention.tied_gate"), false);
  config.gate_low_rank = keys.integer_or("linear_attention.gate_low_rank", 16);
  config.gate_logit_normalizer = keys.number_or("linear_attention.gate_logit_normalizer", 16.0);
}

std::string site_key(Site site) { return fmt::format("spike.k.{}", name(site)); }

void read_spikes(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  const std::string coding = keys.text("spike.coding").value_or("");
  check_data(coding == "w8aspike", "{}: {}: expected w8aspike, got '{}'", file.path(),
             keys.full("spike.coding"), printable(coding));
  const int64_t group = keys.integer("spike.group_size");
  check_data(group == spike::kScaleGroup, "{}: {}: expected {}, got {}", file.path(),
             keys.full("spike.group_size"), spike::kScaleGroup, group);
  config.spikes = SpikeConfig{keys.number_or("spike.k", 3.0)};
  for (int i = 0; i < kSpikingSites; ++i) {
    const std::string key = keys.full(site_key(static_cast<Site>(i)));
    if (const std::vector<double>* own = file.metadata().get_numbers(key)) {
      config.spikes->site_k[static_cast<size_t>(i)] = *own;
    } else if (const auto one = file.metadata().get_number(key)) {
      config.spikes->site_k[static_cast<size_t>(i)].assign(config.layers.size(), *one);
    }
  }
}

void read_ours(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  read_layers(file, keys, config);
  read_linear(file, keys, config);
  if (config.layers_with(FeedForward::kMoe) > 0) read_moe(file, keys, config);
  if (config.any_parallel()) read_branches(file, keys, config);
  if (keys.text("spike.coding").has_value()) read_spikes(file, keys, config);
  config.sink_tokens = keys.integer_or("attention.sink_count", 0);
  config.window_size = keys.integer_or("attention.sliding_window", 0);
  config.window_inclusive_extra =
      flag_or(file, keys.full("attention.sliding_window_inclusive_extra"), false);
  const std::string pairs = keys.text("rope.pairs").value_or("half");
  check_data(pairs == "half" || pairs == "interleaved",
             "{}: {}: expected half or interleaved, got '{}'", file.path(), keys.full("rope.pairs"),
             printable(pairs));
  config.rope_pairs = pairs == "half" ? ops::RopePairs::kHalf : ops::RopePairs::kInterleaved;
  if (keys.text("rope.scaling.type").value_or("none") == "llama3") {
    ops::Llama3Scaling scaling;
    scaling.factor = keys.number_or("rope.scaling.factor", scaling.factor);
    scaling.low_frequency_factor =
        keys.number_or("rope.scaling.low_frequency_factor", scaling.low_frequency_factor);
    scaling.high_frequency_factor =
        keys.number_or("rope.scaling.high_frequency_factor", scaling.high_frequency_factor);
    scaling.original_context =
        keys.number_or("rope.scaling.original_context_length", scaling.original_context);
    config.rope_scaling = scaling;
  }
}

}  // namespace

ModelConfig config_from_gguf(const io::GgufFile& file) {
  const auto architecture = file.metadata().get_string("general.architecture");
  check_data(architecture.has_value(), "{}: metadata key 'general.architecture' is missing",
             file.path());
  check_data(*architecture == kOurs || *architecture == "llama" || *architecture == "qwen2",
             "{}: architecture: expected spikingbrain, llama or qwen2, got '{}'", file.path(),
             printable(*architecture));
  const Keys keys(file, *architecture);
  ModelConfig config;
  config.name = file.metadata().get_string("general.name").value_or("");
  config.architecture = *architecture;
  read_sizes(file, keys, config);
  refuse_unsupported(file, keys, config);
  if (*architecture == kOurs) {
    read_ours(file, keys, config);
  } else {
    config.layers = uniform_layers(layer_count(file, keys), Mixer::kFull);
    // Files of the llama architecture store q and k with interleaved pairs, qwen2 ones in halves.
    config.rope_pairs =
        *architecture == "llama" ? ops::RopePairs::kInterleaved : ops::RopePairs::kHalf;
  }
  check_config(config, file.path());
  return config;
}

namespace {

std::string joined(const std::vector<Mixer>& mixers) {
  std::vector<std::string_view> names;
  for (const Mixer mixer : mixers) names.push_back(name(mixer));
  return fmt::format("{}", fmt::join(names, "+"));
}

void write_layers(const ModelConfig& config, const std::string& prefix,
                  io::GgufMetadata& metadata) {
  std::vector<std::string> mixers;
  std::vector<std::string> networks;
  for (const LayerConfig& layer : config.layers) {
    mixers.push_back(joined(layer.mixers));
    networks.emplace_back(name(layer.feed_forward));
  }
  metadata.set(prefix + "layer.mixers", io::GgufArray(std::move(mixers)));
  if (config.layers_with(FeedForward::kDense) < config.num_layers()) {
    metadata.set(prefix + "layer.feed_forward", io::GgufArray(std::move(networks)));
  }
}

void write_moe(const MoeConfig& moe, const std::string& prefix, io::GgufMetadata& metadata) {
  const bool softmax = moe.score == ops::RouterScore::kSoftmax;
  metadata.set(prefix + "expert_count", moe.num_experts);
  metadata.set(prefix + "expert_used_count", moe.experts_per_token);
  metadata.set(prefix + "expert_shared_count", moe.num_shared);
  metadata.set(prefix + "expert_feed_forward_length", moe.expert_size);
  metadata.set(prefix + "expert_score", std::string(softmax ? "softmax" : "sigmoid"));
  metadata.set(prefix + "expert_weights_norm", moe.renormalize);
}

void write_linear(const ModelConfig& config, const std::string& prefix,
                  io::GgufMetadata& metadata) {
  metadata.set(prefix + "linear_attention.feature_map", std::string(name(config.feature_map)));
  metadata.set(prefix + "linear_attention.tied_gate", config.tied_gate);
  if (config.tied_gate) return;
  metadata.set(prefix + "linear_attention.gate_low_rank", config.gate_low_rank);
  metadata.set(prefix + "linear_attention.gate_logit_normalizer", config.gate_logit_normalizer);
}

void write_branches(const ModelConfig& config, const std::string& prefix,
                    io::GgufMetadata& metadata) {
  metadata.set(prefix + "branch_weight.learned", config.branch_weights_learned);
  if (config.branch_weights_learned) return;
  for (int kind = 0; kind < kMixerKinds; ++kind) {
    const double weight = config.branch_weights[static_cast<size_t>(kind)];
    if (weight == 1.0) continue;
    metadata.set(fmt::format("{}branch_weight.{}", prefix, name(static_cast<Mixer>(kind))), weight);
  }
}

// What files of other architectures can say.
bool is_plain_transformer(const ModelConfig& config) {
  return config.layers_with(Mixer::kFull) == config.num_layers() && !config.any_parallel() &&
         config.layers_with(FeedForward::kDense) == config.num_layers() &&
         config.sink_tokens == 0 && !config.spikes && !config.rope_scaling;
}

void write_ours(const ModelConfig& config, const std::string& prefix, io::GgufMetadata& metadata) {
  write_layers(config, prefix, metadata);
  if (config.layers_with(FeedForward::kMoe) > 0) write_moe(config.moe, prefix, metadata);
  if (config.any_parallel()) write_branches(config, prefix, metadata);
  if (config.spikes) {
    metadata.set(prefix + "spike.coding", std::string("w8aspike"));
    metadata.set(prefix + "spike.group_size", spike::kScaleGroup);
    metadata.set(prefix + "spike.k", config.spikes->k);
    for (int i = 0; i < kSpikingSites; ++i) {
      const std::vector<double>& own = config.spikes->site_k[static_cast<size_t>(i)];
      if (!own.empty()) metadata.set(prefix + site_key(static_cast<Site>(i)), io::GgufArray(own));
    }
  }
  if (config.sink_tokens > 0) metadata.set(prefix + "attention.sink_count", config.sink_tokens);
  metadata.set(prefix + "rope.pairs", config.rope_pairs == ops::RopePairs::kHalf
                                          ? std::string("half")
                                          : std::string("interleaved"));
  if (config.layers_with(Mixer::kWindow) > 0) {
    metadata.set(prefix + "attention.sliding_window", config.window_size);
    metadata.set(prefix + "attention.sliding_window_inclusive_extra",
                 config.window_inclusive_extra);
  }
  if (config.layers_with(Mixer::kLinear) > 0) write_linear(config, prefix, metadata);
  if (config.rope_scaling) {
    metadata.set(prefix + "rope.scaling.type", std::string("llama3"));
    metadata.set(prefix + "rope.scaling.factor", config.rope_scaling->factor);
    metadata.set(prefix + "rope.scaling.low_frequency_factor",
                 config.rope_scaling->low_frequency_factor);
    metadata.set(prefix + "rope.scaling.high_frequency_factor",
                 config.rope_scaling->high_frequency_factor);
    metadata.set(prefix + "rope.scaling.original_context_length",
                 config.rope_scaling->original_context);
  }
}

}  // namespace

void config_to_gguf(const ModelConfig& config, std::string_view architecture,
                    io::GgufMetadata& metadata) {
  const bool ours = architecture == kOurs;
  check(ours || architecture == "llama" || architecture == "qwen2",
        "architecture: expected spikingbrain, llama or qwen2, got '{}'", printable(architecture));
  check(ours || is_plain_transformer(config),
        "architecture: {} cannot express linear or window layers, experts, sinks, nor scaled RoPE",
        architecture);
  const std::string prefix = fmt::format("{}.", architecture);
  metadata.set("general.architecture", std::string(architecture));
  if (!config.name.empty()) metadata.set("general.name", config.name);
  metadata.set(prefix + "block_count", config.num_layers());
  if (config.context_length > 0) metadata.set(prefix + "context_length", config.context_length);
  metadata.set(prefix + "embedding_length", config.hidden_size);
  metadata.set(prefix + "feed_forward_length", config.intermediate_size);
  metadata.set(prefix + "attention.head_count", config.num_heads);
  metadata.set(prefix + "attention.head_count_kv", config.num_kv_heads);
  metadata.set(prefix + "attention.key_length", config.head_dim);
  metadata.set(prefix + "attention.value_length", config.head_dim);
  metadata.set(prefix + "attention.layer_norm_rms_epsilon", config.norm_eps);
  metadata.set(prefix + "rope.dimension_count", config.head_dim);
  metadata.set(prefix + "rope.freq_base", config.rope_theta);
  metadata.set(prefix + "vocab_size", config.vocab_size);
  if (ours) write_ours(config, prefix, metadata);
}

}  // namespace spb::model
