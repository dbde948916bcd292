#include "model/model.h"

#include <array>
#include <filesystem>
#include <unordered_set>

#include "core/block_formats.h"
#include "core/error.h"
#include "io/checkpoint.h"
#include "model/config_gguf.h"
#include "model/config_hugging_face.h"

namespace spb::model {
namespace {

Tensor widened(ConstTensorView view) {
  if (!view.defined()) return {};
  Tensor out(DType::kF32, view.shape());
  dequantize_row(view.dtype(), view.data(), out.as<float>(), view.shape().elements());
  return out;
}

class LayerBuilder {
 public:
  LayerBuilder(Context& context, const LoadOptions& options)
      : context_(context), options_(options) {}

  Layer build(Mixer mixer, const LayerWeights& w) {
    Layer layer;
    layer.mixer = mixer;
    layer.attn_norm = widened(w.attn_norm);
    layer.q = projection(w.q);
    layer.k = projection(w.k);
    layer.v = projection(w.v);
    layer.o = projection(w.o);
    layer.gate_down = projection(w.gate_down);
    layer.gate_up = projection(w.gate_up);
    layer.g_norm = widened(w.g_norm);
    layer.mlp_norm = widened(w.mlp_norm);
    layer.mlp_gate = projection(w.mlp_gate);
    layer.mlp_up = projection(w.mlp_up);
    layer.mlp_down = projection(w.mlp_down);
    return layer;
  }

  ops::MatmulWeight prepare(ConstTensorView view) {
    ops::MatmulWeight weight = ops::prepare_matmul_weight(context_, view, options_.repack);
    if (weight.owns_memory()) copied_.insert(view.data());
    return weight;
  }

  // Pages of the file whose weights now live in a copy need not stay in memory.
  void drop_copied(const io::TensorSource& source) const {
    for (const io::TensorEntry& entry : source.tensors()) {
      if (copied_.contains(entry.view.data())) source.drop(entry);
    }
  }

 private:
  Projection projection(const LinearWeights& w) {
    if (!w.weight.defined()) return {};
    return {prepare(w.weight), widened(w.bias)};
  }

  Context& context_;
  const LoadOptions& options_;
  std::unordered_set<const std::byte*> copied_;
};

// The matrix products of a layer; those its mixer has no use for are undefined.
std::array<const Projection*, 9> projections(const Layer& layer) {
  return {&layer.q,       &layer.k,        &layer.v,      &layer.o,       &layer.gate_down,
          &layer.gate_up, &layer.mlp_gate, &layer.mlp_up, &layer.mlp_down};
}

int64_t layer_bytes(const Layer& layer) {
  int64_t bytes = 0;
  for (const Projection* p : projections(layer)) {
    if (p->weight.defined()) bytes += p->weight.bytes();
  }
  return bytes;
}

// From the config, or from the tensor that llama-architecture files carry instead.
Tensor find_rope_factors(const ModelConfig& config, const io::TensorSource& source) {
  const Shape shape{config.head_dim / 2};
  if (config.rope_scaling) {
    const std::vector<float> factors =
        ops::llama3_rope_factors(*config.rope_scaling, config.rope_theta, config.head_dim);
    Tensor out(DType::kF32, shape);
    std::copy(factors.begin(), factors.end(), out.as<float>());
    return out;
  }
  const io::TensorEntry* entry = source.find("rope_freqs.weight");
  if (entry == nullptr) return {};
  check_data(entry->view.shape() == shape && is_float(entry->view.dtype()),
             "{}: tensor 'rope_freqs.weight': expected {} floats, got {} {}", entry->file, shape[0],
             spb::name(entry->view.dtype()), entry->view.shape().to_string());
  return widened(entry->view);
}

void check_dtype(const TensorSlot& slot, const io::TensorEntry& entry) {
  const DType dtype = entry.view.dtype();
  const bool ok =
      slot.use == TensorUse::kVector ? is_float(dtype) : is_float(dtype) || !is_plain(dtype);
  check_data(ok, "{}: tensor '{}': expected a float{} type, got {}", entry.file,
             printable(entry.name), slot.use == TensorUse::kVector ? "" : " or block",
             spb::name(dtype));
}

std::unique_ptr<Model> load_gguf(Context& context, const std::string& path,
                                 const LoadOptions& options) {
  std::shared_ptr<const io::GgufFile> file = io::GgufFile::open(path);
  ModelConfig config = config_from_gguf(*file);
  ModelWeights weights = bind_weights(config, *file, Naming::kGguf);
  return std::make_unique<Model>(context, std::move(config), std::move(weights), file, options);
}

std::unique_ptr<Model> load_folder(Context& context, const std::string& path,
                                   const LoadOptions& options) {
  std::shared_ptr<const io::TensorSource> source = io::open_checkpoint_folder(path);
  const HuggingFaceConfig found = config_from_hugging_face(path, *source);
  ModelWeights weights = bind_weights(found.config, *source, found.naming);
  return std::make_unique<Model>(context, found.config, std::move(weights), source, options);
}

}  // namespace

std::unique_ptr<Model> Model::load(Context& context, const std::string& path,
                                   const LoadOptions& options) {
  return std::filesystem::is_directory(path) ? load_folder(context, path, options)
                                             : load_gguf(context, path, options);
}

Model::Model(Context& context, ModelConfig config, ModelWeights weights,
             std::shared_ptr<const io::TensorSource> source, const LoadOptions& options)
    : config_(std::move(config)), weights_(std::move(weights)), source_(std::move(source)) {
  LayerBuilder builder(context, options);
  for (size_t i = 0; i < config_.mixers.size(); ++i) {
    layers_.push_back(builder.build(config_.mixers[i], weights_.layers[i]));
  }
  norm_ = widened(weights_.norm);
  const ConstTensorView head = config_.tied_embeddings ? weights_.embeddings : weights_.lm_head;
  head_ = builder.prepare(head);
  builder.drop_copied(*source_);
  rope_factors_ = find_rope_factors(config_, *source_);
}

ConstTensorView Model::rope_factors() const {
  return rope_factors_.defined() ? ConstTensorView(rope_factors_) : ConstTensorView();
}

const io::GgufMetadata* Model::metadata() const {
  const auto* file = dynamic_cast<const io::GgufFile*>(source_.get());
  return file == nullptr ? nullptr : &file->metadata();
}

int64_t Model::bytes_per_token() const {
  int64_t bytes = head_.bytes();
  for (const Layer& layer : layers_) bytes += layer_bytes(layer);
  return bytes;
}

ModelWeights bind_weights(const ModelConfig& config, const io::TensorSource& source,
                          Naming naming) {
  ModelWeights weights;
  for_each_tensor(config, weights, [&](const TensorSlot& slot) {
    const io::TensorEntry& entry = source.at(tensor_name(slot, naming));
    check_data(entry.view.shape() == slot.shape, "{}: tensor '{}': expected shape {}, got {}",
               entry.file, printable(entry.name), slot.shape.to_string(),
               entry.view.shape().to_string());
    check_dtype(slot, entry);
    *slot.view = entry.view;
  });
  return weights;
}

}  // namespace spb::model
