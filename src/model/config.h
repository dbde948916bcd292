// ModelConfig: what a model is, independent of any file format.
//
// A model is a list of layers. A layer is one token mixer, or several in parallel, followed by a
// feed-forward network: dense, a mixture of experts, or none. Mixers in sequence are layers that
// follow each other. A plain Llama or Qwen2 Transformer is the member of the family whose every
// mixer is full softmax attention and whose every network is dense.
// Source: the SpikingBrain technical report (arXiv 2509.05276), section 3; what it leaves open is
// decided in docs/decisions/0007-the-family.md.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/spike_config.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/moe/moe_router.h"
#include "ops/rope/rope.h"

namespace spb::model {

enum class Mixer {
  kFull,    // softmax attention over all earlier positions
  kWindow,  // softmax attention over the last window_size positions
  kLinear,  // gated linear attention: a constant recurrent state
};

inline constexpr int kMixerKinds = 3;

std::string_view name(Mixer mixer);  // "full", "window", "linear"
std::optional<Mixer> parse_mixer(std::string_view name);

enum class FeedForward {
  kDense,  // one SwiGLU network
  kMoe,    // a mixture of experts, each a SwiGLU network
  kNone,   // the next layer follows at once
};

std::string_view name(FeedForward feed_forward);  // "dense", "moe", "none"
std::optional<FeedForward> parse_feed_forward(std::string_view name);

struct LayerConfig {
  // At least one, each kind at most once. Several run in parallel on the same queries, keys and
  // values: every branch's heads are RMS-normalized, weighted and summed before the output
  // projection.
  std::vector<Mixer> mixers;
  FeedForward feed_forward = FeedForward::kDense;

  bool has(Mixer mixer) const;
  bool parallel() const { return mixers.size() > 1; }
  bool operator==(const LayerConfig&) const = default;
};

// Mixture of experts: y = sum over shared experts + sum over the chosen p_e E_e(x).
struct MoeConfig {
  int64_t num_experts = 0;  // routed; 0: the model has no such layers
  int64_t experts_per_token = 1;
  int64_t num_shared = 0;
  int64_t expert_size = 0;  // width of one expert
  ops::RouterScore score = ops::RouterScore::kSoftmax;
  bool renormalize = false;  // divide the chosen scores by their sum

  bool operator==(const MoeConfig&) const = default;
};

struct ModelConfig {
  std::string name;          // for people; may be empty
  std::string architecture;  // where it came from: "spikingbrain", "qwen2", "llama"

  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t context_length = 0;  // positions seen in training; 0: unknown
  double norm_eps = 1e-6;
  bool tied_embeddings = false;  // the output head is the embedding table
  bool qkv_bias = false;

  std::vector<LayerConfig> layers;
  MoeConfig moe;

  // Learned embeddings that stand before every text: visible to every position of a softmax mixer
  // whatever the window, and to each other without a mask; a linear mixer reads them first, in
  // order. They are no output and take no position of the text.
  int64_t sink_tokens = 0;

  // Parallel mixers: what a branch's normalized heads are multiplied by, by kind of mixer; the
  // values of a file are learned when branch_weights_learned, one for each branch of a layer.
  std::array<double, kMixerKinds> branch_weights = {1.0, 1.0, 1.0};
  bool branch_weights_learned = false;

  // Softmax mixers.
  double rope_theta = 10000.0;
  ops::RopePairs rope_pairs = ops::RopePairs::kHalf;
  std::optional<ops::Llama3Scaling> rope_scaling;
  int64_t window_size = 0;  // keys visible from a position in a kWindow layer, itself included
  // Parity with the reference prefill, which shows one key more than the window (see
  // docs/numerics.md).
  bool window_inclusive_extra = false;

  // Linear mixers.
  ops::FeatureMap feature_map = ops::FeatureMap::kRelu;
  bool tied_gate = false;  // decay 1 - key of a sigmoid feature map, instead of a gate of its own
  int64_t gate_low_rank = 16;  // 0: one full matrix, as spiking models have it
  double gate_logit_normalizer = 16.0;

  std::optional<SpikeConfig> spikes;

  int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  const LayerConfig& layer(int64_t index) const { return layers[static_cast<size_t>(index)]; }
  int64_t query_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  int64_t visible_window() const { return window_size + (window_inclusive_extra ? 1 : 0); }
  int64_t shared_size() const { return moe.num_shared * moe.expert_size; }
  int64_t layers_with(Mixer mixer) const;
  int64_t layers_with(FeedForward feed_forward) const;
  bool any_parallel() const;
  bool operator==(const ModelConfig&) const = default;
};

// `count` layers of one mixer and a dense network.
std::vector<LayerConfig> uniform_layers(int64_t count, Mixer mixer);

// Data error naming `source` and the field when a size is absent, out of range or contradicts
// another one. Bounds are far above any real model and keep every product in 63 bits.
void check_config(const ModelConfig& config, const std::string& source);

// Named shapes: "spikingbrain-7b", "spikingbrain-76b", "spikingbrain-1b", "qwen2.5-7b",
// "qwen2.5-0.5b", "llama-3.2-1b", "smollm2-135m"; for tests and demonstrations "tiny-hybrid" and
// "tiny-76b", which have the structure of the 7B and of the 76B.
std::vector<std::string_view> preset_names();
ModelConfig preset(std::string_view name);  // usage error listing the names

}  // namespace spb::model
