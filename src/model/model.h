// Model: weights prepared for this machine, ready for forward().
//
// Immutable after construction, so any number of sequences and threads may share one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/context.h"
#include "io/gguf.h"
#include "model/config.h"
#include "model/weights.h"
#include "ops/matmul/matmul.h"

namespace spb::model {

// A matrix product with its bias, widened to f32.
struct Projection {
  ops::MatmulWeight weight;
  Tensor bias;  // undefined when there is none
};

struct Layer {
  Mixer mixer = Mixer::kFull;
  Tensor attn_norm;
  Projection q, k, v, o;
  Projection gate_down, gate_up;  // linear mixers only
  Tensor g_norm;                  // linear mixers only
  Tensor mlp_norm;
  Projection mlp_gate, mlp_up, mlp_down;
};

struct LoadOptions {
  // Copy block-quantised weights into the layout that decodes fastest. Off: use the mapped file as
  // it is, for models larger than memory.
  bool repack = true;
};

class Model {
 public:
  // A GGUF file, or a folder with config.json and safetensors or PyTorch files. Data or system
  // error naming the file, and the tensor or key that is missing, mis-shaped or unsupported.
  static std::unique_ptr<Model> load(Context& context, const std::string& path,
                                     const LoadOptions& options = {});

  // From views that `source` keeps alive.
  Model(Context& context, ModelConfig config, ModelWeights weights,
        std::shared_ptr<const io::TensorSource> source, const LoadOptions& options = {});

  const ModelConfig& config() const { return config_; }
  const Layer& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }
  ConstTensorView embeddings() const { return weights_.embeddings; }
  const Tensor& norm_weight() const { return norm_; }
  const ops::MatmulWeight& head() const { return head_; }
  ConstTensorView rope_factors() const;  // undefined when the model does not scale RoPE

  // Metadata of the GGUF file the model came from; nullptr for a folder.
  const io::GgufMetadata* metadata() const;
  const ModelWeights& weights() const { return weights_; }

  // Bytes of weights that one decoded token reads.
  int64_t bytes_per_token() const;

 private:
  ModelConfig config_;
  ModelWeights weights_;
  std::shared_ptr<const io::TensorSource> source_;
  std::vector<Layer> layers_;
  Tensor norm_;
  ops::MatmulWeight head_;
  Tensor rope_factors_;
};

// The weights of a config found in a source under the given naming, every shape and dtype checked.
ModelWeights bind_weights(const ModelConfig& config, const io::TensorSource& source, Naming naming);

}  // namespace spb::model
