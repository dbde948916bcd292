// Small random models in memory, for tests of the model.
#pragma once

#include <deque>
#include <memory>
#include <string>

#include "core/block_formats.h"
#include "core/rng.h"
#include "model/model.h"

namespace spb::model {

// Owns the tensors that a model's weights refer to.
class TestWeights : public io::TensorSource {
 public:
  TestWeights(const ModelConfig& config, DType matrix_dtype, uint64_t seed) {
    Rng rng(seed);
    for_each_tensor(config, weights, [&](const TensorSlot& slot) {
      const bool matrix = slot.use != TensorUse::kVector && slot.use != TensorUse::kSmallMatrix;
      Tensor& tensor = tensors_.emplace_back(matrix ? matrix_dtype : DType::kF32, slot.shape);
      fill(slot, tensor, rng);
      *slot.view = tensor;
      entries_.push_back({tensor_name(slot, Naming::kGguf), tensor, path_});
    });
  }

  const std::vector<io::TensorEntry>& tensors() const override { return entries_; }
  const std::string& path() const override { return path_; }

  ModelWeights weights;

 private:
  static void fill(const TensorSlot& slot, Tensor& tensor, Rng& rng) {
    const int64_t columns = slot.shape.last();
    const bool norm = slot.role.find("norm") != std::string_view::npos;
    const auto bound = static_cast<float>(2.0 / std::sqrt(static_cast<double>(columns)));
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t i = 0; i < slot.shape.rows(); ++i) {
      for (float& x : row) {
        x = norm ? rng.uniform(0.5f, 1.5f) : rng.uniform(-bound, bound);
        if (slot.role == "attn_gate_up.bias") x = rng.uniform(-4.0f, 4.0f);
      }
      quantize_row(tensor.dtype(), row.data(), tensor.view().row(i), columns);
    }
  }

  std::deque<Tensor> tensors_;
  std::vector<io::TensorEntry> entries_;
  std::string path_ = "test weights";
};

// Two linear and two window layers (window 24), or `mixer` everywhere.
inline ModelConfig test_config(std::optional<Mixer> mixer = std::nullopt) {
  ModelConfig config = preset("tiny-hybrid");
  config.hidden_size = 96;
  config.intermediate_size = 160;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.vocab_size = 67;
  config.window_size = 24;
  config.context_length = 256;
  if (mixer) config.layers = uniform_layers(3, *mixer);
  return config;
}

inline std::unique_ptr<Model> test_model(Context& context, const ModelConfig& config,
                                         DType dtype = DType::kF32, uint64_t seed = 5) {
  auto weights = std::make_shared<TestWeights>(config, dtype, seed);
  return std::make_unique<Model>(context, config, weights->weights, weights);
}

inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng.below(vocab));
  return tokens;
}
inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocab) {
  return random_tokens(count, vocab, static_cast<uint64_t>(count));
}

}  // namespace spb::model
