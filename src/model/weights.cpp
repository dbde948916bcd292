#include "model/weights.h"

#include <algorithm>
#include <array>

#include "core/error.h"

namespace spb::model {
namespace {

struct Names {
  std::string_view gguf;
  std::string_view hugging_face;  // Llama and Qwen2
  std::string_view hybrid;        // gla_swa; empty: the same as hugging_face
};

constexpr std::array kNames = {
    Names{"token_embd.weight", "model.embed_tokens.weight", "model.embeddings.weight"},
    Names{"output_norm.weight", "model.norm.weight", ""},
    Names{"output.weight", "lm_head.weight", ""},
    Names{"attn_norm.weight", "input_layernorm.weight", "attn_norm.weight"},
    Names{"attn_q.weight", "self_attn.q_proj.weight", "attn.q_proj.weight"},
    Names{"attn_q.bias", "self_attn.q_proj.bias", "attn.q_proj.bias"},
    Names{"attn_k.weight", "self_attn.k_proj.weight", "attn.k_proj.weight"},
    Names{"attn_k.bias", "self_attn.k_proj.bias", "attn.k_proj.bias"},
    Names{"attn_v.weight", "self_attn.v_proj.weight", "attn.v_proj.weight"},
    Names{"attn_v.bias", "self_attn.v_proj.bias", "attn.v_proj.bias"},
    Names{"attn_output.weight", "self_attn.o_proj.weight", "attn.o_proj.weight"},
    Names{"attn_gate_down.weight", "attn.gk_proj.0.weight", ""},
    Names{"attn_gate_up.weight", "attn.gk_proj.1.weight", ""},
    Names{"attn_gate_up.bias", "attn.gk_proj.1.bias", ""},
    Names{"attn_g_norm.weight", "attn.g_norm.weight", ""},
    Names{"ffn_norm.weight", "post_attention_layernorm.weight", "mlp_norm.weight"},
    Names{"ffn_gate.weight", "mlp.gate_proj.weight", ""},
    Names{"ffn_up.weight", "mlp.up_proj.weight", ""},
    Names{"ffn_down.weight", "mlp.down_proj.weight", ""},
};

const Names& names_of(std::string_view role) {
  const auto found = std::find_if(kNames.begin(), kNames.end(),
                                  [&](const Names& names) { return names.gguf == role; });
  check(found != kNames.end(), "tensor name: unknown role '{}'", role);
  return *found;
}

// Walks the tensors of one layer.
class LayerVisitor {
 public:
  LayerVisitor(const ModelConfig& config, int64_t layer, LayerWeights& weights,
               const std::function<void(const TensorSlot&)>& visit)
      : config_(config), layer_(layer), w_(weights), visit_(visit) {}

  void walk() {
    const int64_t c = config_.hidden_size;
    const int64_t f = config_.intermediate_size;
    vector("attn_norm.weight", c, w_.attn_norm);
    attention_projections();
    if (config_.mixers[static_cast<size_t>(layer_)] == Mixer::kLinear) gate();
    vector("ffn_norm.weight", c, w_.mlp_norm);
    matrix("ffn_gate.weight", f, c, w_.mlp_gate.weight);
    matrix("ffn_up.weight", f, c, w_.mlp_up.weight);
    matrix("ffn_down.weight", c, f, w_.mlp_down.weight);
  }

 private:
  void attention_projections() {
    const int64_t c = config_.hidden_size;
    const int64_t q = config_.query_size();
    const int64_t kv = config_.kv_size();
    matrix("attn_q.weight", q, c, w_.q.weight);
    matrix("attn_k.weight", kv, c, w_.k.weight);
    matrix("attn_v.weight", kv, c, w_.v.weight);
    if (config_.qkv_bias) {
      vector("attn_q.bias", q, w_.q.bias);
      vector("attn_k.bias", kv, w_.k.bias);
      vector("attn_v.bias", kv, w_.v.bias);
    }
    matrix("attn_output.weight", c, q, w_.o.weight);
  }

  void gate() {
    const int64_t rank = config_.gate_low_rank;
    small("attn_gate_down.weight", rank, config_.hidden_size, w_.gate_down.weight);
    small("attn_gate_up.weight", config_.kv_size(), rank, w_.gate_up.weight);
    vector("attn_gate_up.bias", config_.kv_size(), w_.gate_up.bias);
    vector("attn_g_norm.weight", config_.head_dim, w_.g_norm);
  }

  void vector(std::string_view role, int64_t size, ConstTensorView& view) {
    visit_({layer_, role, TensorUse::kVector, Shape{size}, &view});
  }
  void matrix(std::string_view role, int64_t rows, int64_t columns, ConstTensorView& view) {
    visit_({layer_, role, TensorUse::kMatrix, Shape{rows, columns}, &view});
  }
  void small(std::string_view role, int64_t rows, int64_t columns, ConstTensorView& view) {
    visit_({layer_, role, TensorUse::kSmallMatrix, Shape{rows, columns}, &view});
  }

  const ModelConfig& config_;
  int64_t layer_;
  LayerWeights& w_;
  const std::function<void(const TensorSlot&)>& visit_;
};

}  // namespace

void for_each_tensor(const ModelConfig& config, ModelWeights& weights,
                     const std::function<void(const TensorSlot&)>& visit) {
  const Shape table{config.vocab_size, config.hidden_size};
  weights.layers.resize(static_cast<size_t>(config.num_layers()));
  visit({-1, "token_embd.weight", TensorUse::kEmbedding, table, &weights.embeddings});
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    LayerVisitor(config, layer, weights.layers[static_cast<size_t>(layer)], visit).walk();
  }
  visit({-1, "output_norm.weight", TensorUse::kVector, Shape{config.hidden_size}, &weights.norm});
  if (!config.tied_embeddings) {
    visit({-1, "output.weight", TensorUse::kMatrix, table, &weights.lm_head});
  }
}

std::string tensor_name(const TensorSlot& slot, Naming naming) {
  const Names& names = names_of(slot.role);
  if (naming == Naming::kGguf) {
    return slot.layer < 0 ? std::string(names.gguf)
                          : fmt::format("blk.{}.{}", slot.layer, names.gguf);
  }
  const bool hybrid = naming == Naming::kHuggingFaceHybrid && !names.hybrid.empty();
  const std::string_view name = hybrid ? names.hybrid : names.hugging_face;
  return slot.layer < 0 ? std::string(name) : fmt::format("model.layers.{}.{}", slot.layer, name);
}

int64_t parameter_count(const ModelConfig& config) {
  ModelWeights weights;
  int64_t total = 0;
  for_each_tensor(config, weights, [&](const TensorSlot& slot) { total += slot.shape.elements(); });
  return total;
}

}  // namespace spb::model
