// Model: weights prepared for this machine, ready for forward().
//
// Immutable after construction, so any number of sequences and threads may share one.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/context.h"
#include "io/gguf.h"
#include "model/config.h"
#include "model/weights.h"
#include "ops/matmul/matmul.h"
#include "spike/spike_matmul/spike_matmul.h"

namespace spb::model {

// A matrix product with its bias, widened to f32. With spikes its input is turned into spike counts
// first; then either `codes` is defined, for integer products, or `weight`, for products of the
// values that counts and codes stand for.
struct Projection {
  ops::MatmulWeight weight;
  spike::SpikeWeight codes;
  Tensor bias;   // undefined when there is none
  Tensor dense;  // what `weight` refers to, where no file has it
  bool spikes = false;

  bool defined() const { return weight.defined() || codes.defined(); }
  int64_t rows() const { return codes.defined() ? codes.rows() : weight.rows(); }
  int64_t bytes() const { return codes.defined() ? codes.bytes() : weight.bytes(); }
};

// A SwiGLU network.
struct Network {
  Projection gate, up, down;
  bool defined() const { return gate.defined(); }
};

// Routed experts: their weights, and the pointers to them that grouped_matmul takes.
struct Experts {
  ops::MatmulWeight router;
  std::deque<ops::MatmulWeight> weights;
  std::vector<const ops::MatmulWeight*> gate, up, down;
};

struct Layer {
  LayerConfig config;
  Tensor attn_norm;
  Projection q, k, v, o;
  Projection gate_down, gate_up;  // linear mixers with a low-rank gate
  Projection gate;                // or with a full one
  // Norms of every head's output by kind of mixer, branch weights included; undefined where the
  // mixer's output is used as it is.
  std::array<Tensor, kMixerKinds> head_norms;
  Tensor mlp_norm;
  Network dense;
  Experts experts;
  Network shared;
};

enum class Residency {
  kAutomatic,  // copied while the experts fit into half of the free memory, else mapped
  kCopied,
  kMapped,  // read from the file: memory follows the experts in use
};

// How a spiking model is executed; docs/spiking.md compares them.
enum class SpikeProfile {
  kExactInteger,  // integer products of counts and codes
  kReference,     // products of the values they stand for, as the published code does
  kReport,        // integer, and the outputs of feed-forward networks are spikes too
};

struct LoadOptions {
  // Copy block-quantised weights into the layout that decodes fastest. Off: use the mapped file as
  // it is, for models larger than memory.
  bool repack = true;
  Residency experts = Residency::kAutomatic;  // without repack always mapped
  SpikeProfile profile = SpikeProfile::kExactInteger;
  bool event_driven = false;  // also keep weights by input channel where that may pay
  std::optional<double> spike_k = std::nullopt;  // instead of the k of a spiking model
  std::vector<SiteRule> site_k = {};             // instead of its k at these places
  // Products as in kReference, at the sites of the profile. ForwardHooks can then silence places.
  bool float_products = false;
  // Float products, and weights that are no codes stay what they are, widened to f32. A model
  // without spikes gets them.
  bool float_weights = false;
};

class SequenceState;

class Model {
 public:
  // A file or folder as open_model (model/open_model.h) takes it. Data or system error naming the
  // file, and the tensor or key that is missing, mis-shaped or unsupported.
  static std::unique_ptr<Model> load(Context& context, const std::string& path,
                                     const LoadOptions& options = {});

  // From views that `source` keeps alive.
  Model(Context& context, ModelConfig config, ModelWeights weights,
        std::shared_ptr<const io::TensorSource> source, const LoadOptions& options = {});
  ~Model();

  const ModelConfig& config() const { return config_; }
  SpikeProfile spike_profile() const { return profile_; }
  const Layer& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }
  const Device& device() const { return device_; }
  ConstTensorView embeddings() const {
    return embeddings_.defined() ? ConstTensorView(embeddings_) : weights_.embeddings;
  }
  ConstTensorView sink_embeddings() const { return sink_embeddings_; }  // [sinks, hidden] f32
  const Tensor& norm_weight() const { return norm_; }
  const ops::MatmulWeight& head() const { return head_; }
  ConstTensorView rope_factors() const;  // undefined when the model does not scale RoPE

  // Metadata of the GGUF file the model came from; nullptr for a folder.
  const io::GgufMetadata* metadata() const;
  const ModelWeights& weights() const { return weights_; }

  // What the sink tokens leave in the mixers, rounded to a cache's dtype; nullptr without sinks.
  const SequenceState* sinks(DType cache_dtype) const;

  // Bytes of weights that one decoded token reads: of the routed experts only the chosen ones.
  int64_t bytes_per_token() const;
  int64_t expert_bytes_per_token() const;  // the part of it in routed experts
  bool experts_are_mapped() const;
  // Takes the routed experts' pages out of memory; they are read again when touched.
  void drop_experts() const;

 private:
  Device device_;  // where weights and the states of sequences lie
  ModelConfig config_;
  SpikeProfile profile_;
  ModelWeights weights_;
  std::shared_ptr<const io::TensorSource> source_;
  std::vector<Layer> layers_;
  Tensor sink_embeddings_;
  Tensor norm_;
  Tensor embeddings_;  // on a CUDA device; else they stay in the file
  ops::MatmulWeight head_;
  Tensor rope_factors_;
  std::vector<std::unique_ptr<SequenceState>> sinks_;  // f32, f16, bf16, i8
};

}  // namespace spb::model
