#include "model/weights.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "spike/spike_matmul/spike_weight.h"

namespace spb::model {
namespace {

struct Names {
  std::string_view gguf;
  std::string_view hugging_face;  // Llama and Qwen2; empty: no such model is published
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
    Names{"attn_gate.weight", "attn.gk_proj.weight", ""},
    Names{"attn_gate.bias", "attn.gk_proj.bias", ""},
    Names{"attn_g_norm.weight", "attn.g_norm.weight", ""},
    Names{"attn_window_norm.weight", "", ""},
    Names{"attn_full_norm.weight", "", ""},
    Names{"attn_branch.weight", "", ""},
    Names{"sink_embd.weight", "", ""},
    Names{"ffn_norm.weight", "post_attention_layernorm.weight", "mlp_norm.weight"},
    Names{"ffn_gate.weight", "mlp.gate_proj.weight", ""},
    Names{"ffn_up.weight", "mlp.up_proj.weight", ""},
    Names{"ffn_down.weight", "mlp.down_proj.weight", ""},
    Names{"ffn_gate_inp.weight", "", ""},
    Names{"ffn_gate_exps.weight", "", ""},
    Names{"ffn_up_exps.weight", "", ""},
    Names{"ffn_down_exps.weight", "", ""},
    Names{"ffn_gate_shexp.weight", "", ""},
    Names{"ffn_up_shexp.weight", "", ""},
    Names{"ffn_down_shexp.weight", "", ""},
};

// The tensors of a matrix that spikes are multiplied with.
struct CodedRoles {
  std::string_view weight, scales, residual;
};

constexpr CodedRoles kQuery{"attn_q.weight", "attn_q.scales", "attn_q.residual"};
constexpr CodedRoles kKey{"attn_k.weight", "attn_k.scales", "attn_k.residual"};
constexpr CodedRoles kValue{"attn_v.weight", "attn_v.scales", "attn_v.residual"};
constexpr CodedRoles kOutput{"attn_output.weight", "attn_output.scales", "attn_output.residual"};
constexpr CodedRoles kDecay{"attn_gate.weight", "attn_gate.scales", "attn_gate.residual"};
constexpr CodedRoles kGate{"ffn_gate.weight", "ffn_gate.scales", "ffn_gate.residual"};
constexpr CodedRoles kUp{"ffn_up.weight", "ffn_up.scales", "ffn_up.residual"};
constexpr CodedRoles kDown{"ffn_down.weight", "ffn_down.scales", ""};
constexpr CodedRoles kSharedGate{"ffn_gate_shexp.weight", "ffn_gate_shexp.scales",
                                 "ffn_gate_shexp.residual"};
constexpr CodedRoles kSharedUp{"ffn_up_shexp.weight", "ffn_up_shexp.scales",
                               "ffn_up_shexp.residual"};
constexpr CodedRoles kSharedDown{"ffn_down_shexp.weight", "ffn_down_shexp.scales", ""};

// "attn_q.scales" and "attn_q.residual" belong to "attn_q.weight".
std::string weight_role(std::string_view role) {
  if (!role.ends_with(".scales") && !role.ends_with(".residual")) return std::string(role);
  return std::string(role.substr(0, role.rfind('.'))) + ".weight";
}

const Names& names_of(std::string_view role) {
  const auto found = std::find_if(kNames.begin(), kNames.end(),
                                  [&](const Names& names) { return names.gguf == role; });
  check(found != kNames.end(), "tensor name: unknown role '{}'", role);
  return *found;
}

// Walks the tensors of one layer.
class LayerVisitor {
 public:
  LayerVisitor(const ModelConfig& config, int64_t index, LayerWeights& weights,
               const std::function<void(const TensorSlot&)>& visit)
      : config_(config), index_(index), layer_(config.layer(index)), w_(weights), visit_(visit) {}

  void walk() {
    vector("attn_norm.weight", config_.hidden_size, w_.attn_norm);
    attention_projections();
    if (layer_.has(Mixer::kLinear) && !config_.tied_gate) gate();
    head_norms();
    if (layer_.feed_forward == FeedForward::kNone) return;
    vector("ffn_norm.weight", config_.hidden_size, w_.mlp_norm);
    if (layer_.feed_forward == FeedForward::kMoe) return experts();
    const int64_t c = config_.hidden_size;
    const int64_t f = config_.intermediate_size;
    coded(kGate, Site::kFeedForwardInput, f, c, w_.dense.gate);
    coded(kUp, Site::kFeedForwardInput, f, c, w_.dense.up);
    down(kDown, f, w_.dense.down);
  }

 private:
  void attention_projections() {
    const int64_t c = config_.hidden_size;
    const int64_t q = config_.query_size();
    const int64_t kv = config_.kv_size();
    coded(kQuery, Site::kMixerInput, q, c, w_.q);
    coded(kKey, Site::kMixerInput, kv, c, w_.k);
    coded(kValue, Site::kMixerInput, kv, c, w_.v);
    if (config_.qkv_bias) {
      vector("attn_q.bias", q, w_.q.bias);
      vector("attn_k.bias", kv, w_.k.bias);
      vector("attn_v.bias", kv, w_.v.bias);
    }
    coded(kOutput, Site::kMixerOutput, c, q, w_.o);
  }

  void gate() {
    const int64_t rank = config_.gate_low_rank;
    if (rank == 0) {
      coded(kDecay, Site::kMixerInput, config_.kv_size(), config_.hidden_size, w_.gate);
      vector("attn_gate.bias", config_.kv_size(), w_.gate.bias);
      return;
    }
    small("attn_gate_down.weight", rank, config_.hidden_size, w_.gate_down.weight);
    small("attn_gate_up.weight", config_.kv_size(), rank, w_.gate_up.weight);
    vector("attn_gate_up.bias", config_.kv_size(), w_.gate_up.bias);
  }

  void head_norms() {
    static constexpr std::array<std::string_view, kMixerKinds> kRoles = {
        "attn_full_norm.weight", "attn_window_norm.weight", "attn_g_norm.weight"};
    for (const Mixer mixer : layer_.mixers) {
      const auto kind = static_cast<size_t>(mixer);
      if (mixer != Mixer::kLinear && !layer_.parallel()) continue;
      vector(kRoles[kind], config_.head_dim, w_.head_norms[kind]);
    }
    if (layer_.parallel() && config_.branch_weights_learned) {
      vector("attn_branch.weight", static_cast<int64_t>(layer_.mixers.size()), w_.branch_weights);
    }
  }

  void experts() {
    const int64_t c = config_.hidden_size;
    const int64_t n = config_.moe.num_experts;
    const int64_t f = config_.moe.expert_size;
    visit("ffn_gate_inp.weight", TensorUse::kVector, Shape{n, c}, w_.router);
    visit("ffn_gate_exps.weight", TensorUse::kExperts, Shape{n, f, c}, w_.experts.gate.weight);
    visit("ffn_up_exps.weight", TensorUse::kExperts, Shape{n, f, c}, w_.experts.up.weight);
    visit("ffn_down_exps.weight", TensorUse::kExperts, Shape{n, c, f}, w_.experts.down.weight);
    const int64_t shared = config_.shared_size();
    if (shared == 0) return;
    coded(kSharedGate, Site::kFeedForwardInput, shared, c, w_.shared.gate);
    coded(kSharedUp, Site::kFeedForwardInput, shared, c, w_.shared.up);
    down(kSharedDown, shared, w_.shared.down);
  }

  void visit(std::string_view role, TensorUse use, const Shape& shape, ConstTensorView& view) {
    visit_({index_, role, use, shape, &view});
  }
  // A matrix whose input is spikes in a spiking model, unless the site is silenced.
  void coded(const CodedRoles& roles, Site site, int64_t rows, int64_t columns,
             LinearWeights& linear) {
    const bool spikes = config_.spikes && config_.spikes->at(index_, site) > 0;
    if (!spikes) return matrix(roles.weight, rows, columns, linear.weight);
    visit(roles.weight, TensorUse::kCodes, Shape{rows, columns}, linear.weight);
    visit(roles.scales, TensorUse::kScales, scales_shape(rows, columns), linear.scales);
    visit_({index_, roles.residual, TensorUse::kResidual, Shape{0, 3}, &linear.residual, true});
  }

  // The output of a feed-forward network: spikes in one profile only, so its weight stays as it
  // is; the file may say how to round it.
  void down(const CodedRoles& roles, int64_t width, LinearWeights& linear) {
    matrix(roles.weight, config_.hidden_size, width, linear.weight);
    if (!config_.spikes) return;
    visit_({index_, roles.scales, TensorUse::kScales, scales_shape(config_.hidden_size, width),
            &linear.scales, true});
  }

  static Shape scales_shape(int64_t rows, int64_t columns) {
    return Shape{rows, (columns + spike::kScaleGroup - 1) / spike::kScaleGroup};
  }

  void vector(std::string_view role, int64_t size, ConstTensorView& view) {
    visit(role, TensorUse::kVector, Shape{size}, view);
  }
  void matrix(std::string_view role, int64_t rows, int64_t columns, ConstTensorView& view) {
    visit(role, TensorUse::kMatrix, Shape{rows, columns}, view);
  }
  void small(std::string_view role, int64_t rows, int64_t columns, ConstTensorView& view) {
    visit(role, TensorUse::kSmallMatrix, Shape{rows, columns}, view);
  }

  const ModelConfig& config_;
  int64_t index_;
  const LayerConfig& layer_;
  LayerWeights& w_;
  const std::function<void(const TensorSlot&)>& visit_;
};

}  // namespace

void for_each_tensor(const ModelConfig& config, ModelWeights& weights,
                     const std::function<void(const TensorSlot&)>& visit) {
  const Shape table{config.vocab_size, config.hidden_size};
  weights.layers.resize(static_cast<size_t>(config.num_layers()));
  visit({-1, "token_embd.weight", TensorUse::kEmbedding, table, &weights.embeddings});
  if (config.sink_tokens > 0) {
    visit({-1, "sink_embd.weight", TensorUse::kVector,
           Shape{config.sink_tokens, config.hidden_size}, &weights.sinks});
  }
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    LayerVisitor(config, layer, weights.layers[static_cast<size_t>(layer)], visit).walk();
  }
  visit({-1, "output_norm.weight", TensorUse::kVector, Shape{config.hidden_size}, &weights.norm});
  if (!config.tied_embeddings) {
    visit({-1, "output.weight", TensorUse::kMatrix, table, &weights.lm_head});
  }
}

std::string tensor_name(const TensorSlot& slot, Naming naming) {
  if (naming == Naming::kGguf) {
    return slot.layer < 0 ? std::string(slot.role)
                          : fmt::format("blk.{}.{}", slot.layer, slot.role);
  }
  const Names& names = names_of(weight_role(slot.role));
  const bool hybrid = naming == Naming::kHuggingFaceHybrid && !names.hybrid.empty();
  const std::string_view name = hybrid ? names.hybrid : names.hugging_face;
  check(!name.empty(), "tensor name: '{}' has no name in Hugging Face files", names.gguf);
  // "q_proj.weight" -> "q_proj.weight_quantizer.scales"
  const std::string_view end = slot.use == TensorUse::kScales     ? "_quantizer.scales"
                               : slot.use == TensorUse::kResidual ? "_quantizer.residual"
                                                                  : "";
  return slot.layer < 0 ? std::string(name)
                        : fmt::format("model.layers.{}.{}{}", slot.layer, name, end);
}

ParameterCount count_parameters(const ModelConfig& config) {
  ModelWeights weights;
  ParameterCount count;
  for_each_tensor(config, weights, [&](const TensorSlot& slot) {
    if (slot.use == TensorUse::kScales || slot.use == TensorUse::kResidual) return;
    const int64_t elements = slot.shape.elements();
    count.total += elements;
    count.active += slot.use == TensorUse::kExperts
                        ? elements / config.moe.num_experts * config.moe.experts_per_token
                        : elements;
  });
  return count;
}

}  // namespace spb::model
