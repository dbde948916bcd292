#include "model/config_gguf.h"

#include <algorithm>

#include "core/error.h"

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
  check_data(keys.integer_or("expert_count", 0) == 0, "{}: {}: mixture of experts is not supported",
             file.path(), keys.full("expert_count"));
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

void read_mixers(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  const std::string key = keys.full("layer.mixers");
  const std::vector<std::string>* names = file.metadata().get_strings(key);
  check_data(names != nullptr, "{}: metadata key '{}' is missing", file.path(), key);
  const int64_t layers = layer_count(file, keys);
  check_data(static_cast<int64_t>(names->size()) == layers,
             "{}: {}: expected one mixer for each of {} layers, got {}", file.path(), key, layers,
             names->size());
  for (const std::string& text : *names) {
    const std::optional<Mixer> mixer = parse_mixer(text);
    check_data(mixer.has_value(), "{}: {}: expected full, window or linear, got '{}'", file.path(),
               key, printable(text));
    config.mixers.push_back(*mixer);
  }
}

void read_ours(const io::GgufFile& file, const Keys& keys, ModelConfig& config) {
  read_mixers(file, keys, config);
  config.window_size = keys.integer_or("attention.sliding_window", 0);
  config.window_inclusive_extra =
      file.metadata()
          .get_bool(keys.full("attention.sliding_window_inclusive_extra"))
          .value_or(false);
  config.gate_low_rank = keys.integer_or("linear_attention.gate_low_rank", 16);
  config.gate_logit_normalizer = keys.number_or("linear_attention.gate_logit_normalizer", 16.0);
  const std::string map = keys.text("linear_attention.feature_map").value_or("relu");
  check_data(map == "relu", "{}: {}: expected relu, got '{}'", file.path(),
             keys.full("linear_attention.feature_map"), printable(map));
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
    config.mixers.assign(static_cast<size_t>(layer_count(file, keys)), Mixer::kFull);
    // Files of the llama architecture store q and k with interleaved pairs, qwen2 ones in halves.
    config.rope_pairs =
        *architecture == "llama" ? ops::RopePairs::kInterleaved : ops::RopePairs::kHalf;
  }
  check_config(config, file.path());
  return config;
}

namespace {

void write_ours(const ModelConfig& config, const std::string& prefix, io::GgufMetadata& metadata) {
  std::vector<std::string> mixers;
  for (const Mixer mixer : config.mixers) mixers.emplace_back(name(mixer));
  metadata.set(prefix + "layer.mixers", io::GgufArray(std::move(mixers)));
  metadata.set(prefix + "rope.pairs", config.rope_pairs == ops::RopePairs::kHalf
                                          ? std::string("half")
                                          : std::string("interleaved"));
  if (config.layers_with(Mixer::kWindow) > 0) {
    metadata.set(prefix + "attention.sliding_window", config.window_size);
    metadata.set(prefix + "attention.sliding_window_inclusive_extra",
                 config.window_inclusive_extra);
  }
  if (config.layers_with(Mixer::kLinear) > 0) {
    metadata.set(prefix + "linear_attention.feature_map", std::string("relu"));
    metadata.set(prefix + "linear_attention.gate_low_rank", config.gate_low_rank);
    metadata.set(prefix + "linear_attention.gate_logit_normalizer", config.gate_logit_normalizer);
  }
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
  check(ours || (config.layers_with(Mixer::kFull) == config.num_layers() && !config.rope_scaling),
        "architecture: {} cannot express linear or window layers, nor scaled RoPE", architecture);
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
