#include "model/config_hugging_face.h"

#include <algorithm>
#include <filesystem>

#include "core/error.h"
#include "io/json.h"

namespace spb::model {
namespace {

// Typed look-up in config.json; null counts as absent.
class Fields {
 public:
  Fields(const io::Json& json, std::string file) : json_(json), file_(std::move(file)) {}

  const std::string& file() const { return file_; }
  std::string where(const std::string& key) const { return fmt::format("{}: {}", file_, key); }

  const io::Json* find(const std::string& key) const {
    const io::Json* value = io::find_member(json_, key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  int64_t integer(const std::string& key) const {
    const io::Json* value = find(key);
    check_data(value != nullptr, "{}: '{}' is missing", file_, key);
    return io::json_integer(*value, where(key));
  }
  int64_t integer_or(const std::string& key, int64_t fallback) const {
    return find(key) == nullptr ? fallback : integer(key);
  }
  double number_or(const std::string& key, double fallback) const {
    const io::Json* value = find(key);
    return value == nullptr ? fallback : io::json_number(*value, where(key));
  }
  bool flag_or(const std::string& key, bool fallback) const {
    const io::Json* value = find(key);
    return value == nullptr ? fallback : io::json_bool(*value, where(key));
  }
  std::string text_or(const std::string& key, const std::string& fallback) const {
    const io::Json* value = find(key);
    return value == nullptr ? fallback : io::json_string(*value, where(key));
  }

 private:
  const io::Json& json_;
  std::string file_;
};

void read_sizes(const Fields& fields, ModelConfig& config) {
  config.hidden_size = fields.integer("hidden_size");
  config.num_heads = fields.integer("num_attention_heads");
  check_data(config.num_heads > 0, "{}: expected at least 1, got {}",
             fields.where("num_attention_heads"), config.num_heads);
  config.num_kv_heads = fields.integer_or("num_key_value_heads", config.num_heads);
  config.head_dim = fields.integer_or("head_dim", config.hidden_size / config.num_heads);
  config.intermediate_size = fields.integer("intermediate_size");
  config.vocab_size = fields.integer("vocab_size");
  config.context_length = fields.integer_or("max_position_embeddings", 0);
  config.rope_theta = fields.number_or("rope_theta", 10000.0);
}

int64_t read_layer_count(const Fields& fields) {
  const int64_t layers = fields.integer("num_hidden_layers");
  check_data(layers >= 1 && layers <= 4096, "{}: expected 1 to 4096, got {}",
             fields.where("num_hidden_layers"), layers);
  return layers;
}

// The layers with softmax attention: listed in attn_layers, or 1, 3, 5, ... when it is absent.
void read_hybrid_mixers(const Fields& fields, ModelConfig& config) {
  const auto layers = static_cast<size_t>(read_layer_count(fields));
  config.layers = uniform_layers(static_cast<int64_t>(layers), Mixer::kLinear);
  const io::Json* listed = fields.find("attn_layers");
  if (listed == nullptr) {
    for (size_t i = 1; i < layers; i += 2) config.layers[i].mixers = {Mixer::kWindow};
    return;
  }
  const std::string where = fields.where("attn_layers");
  for (const io::Json& entry : io::json_array(*listed, where)) {
    const int64_t layer = io::json_integer(entry, where);
    check_data(layer >= 0 && layer < static_cast<int64_t>(layers),
               "{}: expected layers from 0 to {}, got {}", where, layers - 1, layer);
    config.layers[static_cast<size_t>(layer)].mixers = {Mixer::kWindow};
  }
}

void read_hybrid(const Fields& fields, ModelConfig& config) {
  check_data(!fields.flag_or("use_short_conv", false),
             "{}: short convolutions are not supported: expected false, got true",
             fields.where("use_short_conv"));
  const std::string map = fields.text_or("feature_map", "relu");
  check_data(map == "relu", "{}: expected relu, got '{}'", fields.where("feature_map"),
             printable(map));
  config.architecture = "spikingbrain";
  config.norm_eps = fields.number_or("norm_eps", 1e-6);
  config.window_size = fields.integer_or("sliding_window", 4096);
  config.window_inclusive_extra = fields.flag_or("window_inclusive_extra", false);
  config.gate_low_rank = fields.integer_or("gate_low_rank_dim", 16);
  config.gate_logit_normalizer = fields.number_or("gate_logit_normalizer", 16.0);
  read_hybrid_mixers(fields, config);
}

void read_rope_scaling(const Fields& fields, ModelConfig& config) {
  const io::Json* found = fields.find("rope_scaling");
  // Newer files nest the base beside the scaling.
  const io::Json* parameters = fields.find("rope_parameters");
  if (found == nullptr) found = parameters;
  if (found == nullptr) return;
  const Fields scaling(io::json_object(*found, fields.where("rope_scaling")),
                       fields.where("rope_scaling"));
  config.rope_theta = scaling.number_or("rope_theta", config.rope_theta);
  const std::string type = scaling.text_or("rope_type", scaling.text_or("type", "default"));
  if (type == "default") return;
  check_data(type == "llama3", "{}: expected default or llama3, got '{}'",
             scaling.where("rope_type"), printable(type));
  ops::Llama3Scaling llama3;
  llama3.factor = scaling.number_or("factor", llama3.factor);
  llama3.low_frequency_factor = scaling.number_or("low_freq_factor", llama3.low_frequency_factor);
  llama3.high_frequency_factor =
      scaling.number_or("high_freq_factor", llama3.high_frequency_factor);
  llama3.original_context =
      scaling.number_or("original_max_position_embeddings", llama3.original_context);
  config.rope_scaling = llama3;
}

void read_transformer(const Fields& fields, const std::string& type, ModelConfig& config) {
  check_data(!fields.flag_or("use_sliding_window", false),
             "{}: sliding windows of this model type are not supported",
             fields.where("use_sliding_window"));
  check_data(!fields.flag_or("mlp_bias", false), "{}: biases there are not supported",
             fields.where("mlp_bias"));
  config.architecture = type;
  config.norm_eps = fields.number_or("rms_norm_eps", 1e-6);
  config.layers = uniform_layers(read_layer_count(fields), Mixer::kFull);
  read_rope_scaling(fields, config);
}

}  // namespace

HuggingFaceConfig config_from_hugging_face(const std::string& folder,
                                           const io::TensorSource& source) {
  const std::string file = (std::filesystem::path(folder) / "config.json").string();
  const io::Json json = io::read_json_file(file);
  const Fields fields(io::json_object(json, file), file);
  const std::string type = fields.text_or("model_type", "");
  check_data(type == "gla_swa" || type == "qwen2" || type == "llama",
             "{}: model_type: expected gla_swa, qwen2 or llama, got '{}'", file, printable(type));
  check_data(fields.find("quantization_config") == nullptr,
             "{}: quantization_config: quantised checkpoints are not supported", file);
  const std::string activation = fields.text_or("hidden_act", "silu");
  check_data(activation == "silu" || activation == "swish", "{}: expected silu or swish, got '{}'",
             fields.where("hidden_act"), printable(activation));
  HuggingFaceConfig found;
  ModelConfig& config = found.config;
  config.name = fields.text_or("_name_or_path", "");
  read_sizes(fields, config);
  if (type == "gla_swa") {
    found.naming = Naming::kHuggingFaceHybrid;
    read_hybrid(fields, config);
  } else {
    read_transformer(fields, type, config);
  }
  config.tied_embeddings =
      fields.flag_or("tie_word_embeddings", false) || source.find("lm_head.weight") == nullptr;
  const bool hybrid = found.naming == Naming::kHuggingFaceHybrid;
  // Published spiking checkpoints carry a scale for every group of weights, and one full gate.
  const auto& tensors = source.tensors();
  if (std::any_of(tensors.begin(), tensors.end(), [](const io::TensorEntry& entry) {
        return entry.name.ends_with(".weight_quantizer.scales");
      })) {
    config.spikes = SpikeConfig{};
    config.gate_low_rank = 0;
  }
  config.qkv_bias = source.find(hybrid ? "model.layers.0.attn.q_proj.bias"
                                       : "model.layers.0.self_attn.q_proj.bias") != nullptr;
  check_config(config, file);
  return found;
}

}  // namespace spb::model
