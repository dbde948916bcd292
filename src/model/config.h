// ModelConfig: what a model is, independent of any file format.
//
// A model is a list of layers; a layer is one token mixer followed by a SwiGLU feed-forward
// network. A plain Llama or Qwen2 Transformer is the member of the family whose every mixer is full
// softmax attention. Source: the SpikingBrain technical report (arXiv 2509.05276), section 3.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/rope/rope.h"

namespace spb::model {

enum class Mixer {
  kFull,    // softmax attention over all earlier positions
  kWindow,  // softmax attention over the last window_size positions
  kLinear,  // gated linear attention: a constant recurrent state
};

std::string_view name(Mixer mixer);  // "full", "window", "linear"
std::optional<Mixer> parse_mixer(std::string_view name);

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

  std::vector<Mixer> mixers;  // one per layer

  // Softmax mixers.
  double rope_theta = 10000.0;
  ops::RopePairs rope_pairs = ops::RopePairs::kHalf;
  std::optional<ops::Llama3Scaling> rope_scaling;
  int64_t window_size = 0;  // keys visible from a position in a kWindow layer, itself included
  // Parity with the reference prefill, which shows one key more than the window (see
  // docs/numerics.md).
  bool window_inclusive_extra = false;

  // Linear mixers.
  int64_t gate_low_rank = 16;
  double gate_logit_normalizer = 16.0;

  int64_t num_layers() const { return static_cast<int64_t>(mixers.size()); }
  int64_t query_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  int64_t visible_window() const { return window_size + (window_inclusive_extra ? 1 : 0); }
  int64_t layers_with(Mixer mixer) const;
};

// Data error naming `source` and the field when a size is absent, out of range or contradicts
// another one. Bounds are far above any real model and keep every product in 63 bits.
void check_config(const ModelConfig& config, const std::string& source);

// Named shapes: "spikingbrain-7b", "spikingbrain-1b", "qwen2.5-7b", "qwen2.5-0.5b", "llama-3.2-1b",
// "smollm2-135m" and "tiny-hybrid" (for tests and demonstrations).
std::vector<std::string_view> preset_names();
ModelConfig preset(std::string_view name);  // usage error listing the names

}  // namespace spb::model
