#include "model/model.h"

#include <algorithm>
#include <array>
#include <unordered_set>

#include "core/cuda/row_formats.h"
#include "core/error.h"
#include "core/memory_usage.h"
#include "core/transfer.h"
#include "core/widen.h"
#include "model/device_room.h"
#include "model/open_model.h"
#include "model/projection_codes.h"
#include "model/sinks.h"
#include "ops/moe/grouped_matmul.h"

namespace spb::model {
namespace {

class LayerBuilder {
 public:
  LayerBuilder(Context& context, const ModelConfig& config, const io::TensorSource& source,
               const LoadOptions& options)
      : context_(context),
        config_(config),
        source_(source),
        repack_(options.repack),
        profile_(options.profile),
        float_products_(options.float_products || options.float_weights ||
                        options.profile == SpikeProfile::kReference),
        float_weights_(options.float_weights),
        event_driven_(options.event_driven) {}

  void copy_experts(bool copy) { copy_experts_ = copy; }

  Layer build(int64_t index, const LayerWeights& w) {
    const LayerConfig& config = config_.layer(index);
    index_ = index;
    Layer layer;
    layer.config = config;
    layer.attn_norm = resident(widened(w.attn_norm));
    layer.q = projection(w.q, Site::kMixerInput);
    layer.k = projection(w.k, Site::kMixerInput);
    layer.v = projection(w.v, Site::kMixerInput);
    layer.o = projection(w.o, Site::kMixerOutput);
    layer.gate_down = projection(w.gate_down, Site::kMixerInput);
    layer.gate_up = dense(w.gate_up);
    layer.gate = projection(w.gate, Site::kMixerInput);
    add_head_norms(w, layer);
    layer.mlp_norm = resident(widened(w.mlp_norm));
    layer.dense = network(w.dense);
    layer.shared = network(w.shared);
    if (config.feed_forward == FeedForward::kMoe) add_experts(w, layer.experts);
    return layer;
  }

  ops::MatmulWeight prepare(ConstTensorView view) {
    ops::MatmulWeight weight = ops::prepare_matmul_weight(context_, view, repack_);
    if (weight.owns_memory()) copied_.insert(view.data());
    return weight;
  }

  // On the device of the model.
  Tensor resident(Tensor host) const {
    if (!host.defined() || !context_.device().is_cuda()) return host;
    return to_device(context_, host);
  }

  // Pages of the file whose weights now live in a copy need not stay in memory.
  void drop_copied(const io::TensorSource& source) const {
    for (const io::TensorEntry& entry : source.tensors()) {
      if (copied_.contains(entry.view.data())) source.drop(entry);
    }
  }

 private:
  // Weights of codes stay their values where the site does not spike, except those of
  // feed-forward outputs, whose scales are for one profile only.
  Projection projection(const LinearWeights& w, Site site) {
    const bool spikes = w.weight.defined() && fires(site);
    const bool codes = w.scales.defined() && site != Site::kFeedForwardOutput;
    Projection out = codes || (spikes && !float_weights_) ? coded(w, spikes) : dense(w);
    out.spikes = spikes;
    return out;
  }

  bool fires(Site site) const {
    if (site == Site::kFeedForwardOutput && profile_ != SpikeProfile::kReport) return false;
    return config_.spikes && config_.spikes->at(index_, site) > 0;
  }

  Projection dense(const LinearWeights& w) {
    Projection out;
    if (!w.weight.defined()) return out;
    out.bias = resident(widened(w.bias));
    if (float_weights_ && !is_float(w.weight.dtype())) {
      out.dense = widened(w.weight);
      out.weight = ops::prepare_matmul_weight(context_, out.dense, false);
    } else {
      out.weight = prepare(w.weight);
    }
    return out;
  }

  Projection coded(const LinearWeights& w, bool spikes) {
    Projection out;
    out.bias = resident(widened(w.bias));
    const ProjectionCodes codes = codes_of(w);
    if (float_products_ || !spikes) {
      out.dense = codes.values(context_);
      out.weight = ops::prepare_matmul_weight(context_, out.dense, false);
      if (context_.device().is_cuda()) out.dense = Tensor();  // it was copied
    } else {
      // A copy that could never pay would only take memory.
      const bool events =
          event_driven_ && spike::event_pays(context_.device(), w.weight.shape()[0], 1);
      out.codes = spike::prepare_spike_weight(context_, codes.source(),
                                              {.channel_major = events, .short_last_group = true});
    }
    copied_.insert(w.weight.data());
    return out;
  }

  ProjectionCodes codes_of(const LinearWeights& w) {
    try {
      return ProjectionCodes(context_, w);
    } catch (const Error& error) {
      for (const io::TensorEntry& entry : source_.tensors()) {
        if (entry.view.data() != w.weight.data()) continue;
        throw Error(error.kind(), fmt::format("{}: tensor '{}': {}", entry.file,
                                              printable(entry.name), error.what()));
      }
      throw;
    }
  }

  Network network(const NetworkWeights& w) {
    return {projection(w.gate, Site::kFeedForwardInput), projection(w.up, Site::kFeedForwardInput),
            projection(w.down, Site::kFeedForwardOutput)};
  }

  // A branch's weight times its normalized heads is a norm whose weight is multiplied by it.
  void add_head_norms(const LayerWeights& w, Layer& layer) {
    const Tensor learned = widened(w.branch_weights);
    for (size_t branch = 0; branch < layer.config.mixers.size(); ++branch) {
      const auto kind = static_cast<size_t>(layer.config.mixers[branch]);
      Tensor norm = widened(w.head_norms[kind]);
      if (layer.config.parallel()) {
        const float factor = learned.defined() ? learned.as<float>()[branch]
                                               : static_cast<float>(config_.branch_weights[kind]);
        for (int64_t i = 0; i < norm.shape().elements(); ++i) norm.as<float>()[i] *= factor;
      }
      layer.head_norms[kind] = resident(std::move(norm));
    }
  }

  void add_experts(const LayerWeights& w, Experts& experts) {
    experts.router = ops::prepare_matmul_weight(context_, w.router, false);
    add_stack(w.experts.gate.weight, experts.weights, experts.gate);
    add_stack(w.experts.up.weight, experts.weights, experts.up);
    add_stack(w.experts.down.weight, experts.weights, experts.down);
  }

  // Weights are stored where the pointers to them stay valid.
  void add_stack(ConstTensorView stack, std::deque<ops::MatmulWeight>& weights,
                 std::vector<const ops::MatmulWeight*>& pointers) {
    for (auto& weight : ops::prepare_expert_weights(context_, stack, repack_ && copy_experts_)) {
      weights.push_back(std::move(weight));
      pointers.push_back(&weights.back());
      if (weights.back().owns_memory()) copied_.insert(stack.data());
    }
  }

  Context& context_;
  const ModelConfig& config_;
  const io::TensorSource& source_;
  bool repack_;
  SpikeProfile profile_;
  bool float_products_;
  bool float_weights_;
  bool event_driven_;
  int64_t index_ = 0;  // of the layer being built
  bool copy_experts_ = false;
  std::unordered_set<const std::byte*> copied_;
};

// The matrix products of a layer that every token takes part in; those it has no use for are
// undefined.
std::array<const Projection*, 13> projections(const Layer& layer) {
  return {&layer.gate,       &layer.q,          &layer.k,           &layer.v,
          &layer.o,          &layer.gate_down,  &layer.gate_up,     &layer.dense.gate,
          &layer.dense.up,   &layer.dense.down, &layer.shared.gate, &layer.shared.up,
          &layer.shared.down};
}

int64_t layer_bytes(const Layer& layer) {
  int64_t bytes = layer.experts.router.defined() ? layer.experts.router.bytes() : 0;
  for (const Projection* p : projections(layer)) {
    if (p->defined()) bytes += p->bytes();
  }
  return bytes;
}

bool copy_experts(const ModelConfig& config, const ModelWeights& weights, Residency residency) {
  if (residency != Residency::kAutomatic) return residency == Residency::kCopied;
  int64_t bytes = 0;
  ModelWeights views = weights;
  for_each_tensor(config, views, [&](const TensorSlot& slot) {
    if (slot.use == TensorUse::kExperts) bytes += slot.view->bytes();
  });
  return bytes <= available_memory() / 2;
}

void replace_spikes(ModelConfig& config, const LoadOptions& options) {
  if (options.float_weights && !config.spikes) config.spikes.emplace();
  if (!options.spike_k && options.site_k.empty()) return;
  check(config.spikes.has_value(), "model: spike k: expected a spiking model");
  const double k = options.spike_k.value_or(config.spikes->k);
  check(k >= 1e-3 && k <= 1e6, "model: spike k: expected 0.001 to 1000000, got {}", k);
  config.spikes->k = k;
  apply_rules(options.site_k, config.num_layers(), *config.spikes);
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

// Embeddings keep formats that the kernels read; others are widened.
Tensor device_table(Context& context, ConstTensorView table) {
  if (cuda::readable_on_device(table.dtype())) return to_device(context, table);
  return to_device(context, widened(table));
}

}  // namespace

std::unique_ptr<Model> Model::load(Context& context, const std::string& path,
                                   const LoadOptions& options) {
  OpenModel found = open_model(path);
  ModelWeights weights = bind_weights(found.config, *found.source, found.naming);
  return std::make_unique<Model>(context, std::move(found.config), std::move(weights),
                                 std::move(found.source), options);
}

Model::Model(Context& context, ModelConfig config, ModelWeights weights,
             std::shared_ptr<const io::TensorSource> source, const LoadOptions& options)
    : device_(context.device()),
      config_(std::move(config)),
      profile_(options.profile),
      weights_(std::move(weights)),
      source_(std::move(source)) {
  if (device_.is_cuda()) check_weights_fit(config_, weights_, room_on(device_));
  replace_spikes(config_, options);
  LayerBuilder builder(context, config_, *source_, options);
  builder.copy_experts(copy_experts(config_, weights_, options.experts));
  for (int64_t i = 0; i < config_.num_layers(); ++i) {
    layers_.push_back(builder.build(i, weights_.layers[static_cast<size_t>(i)]));
  }
  sink_embeddings_ = builder.resident(widened(weights_.sinks));
  norm_ = builder.resident(widened(weights_.norm));
  embeddings_ = device_.is_cuda() ? device_table(context, weights_.embeddings) : Tensor();
  const ConstTensorView head = config_.tied_embeddings ? weights_.embeddings : weights_.lm_head;
  head_ = builder.prepare(head);
  builder.drop_copied(*source_);
  rope_factors_ = builder.resident(find_rope_factors(config_, *source_));
  if (config_.sink_tokens > 0) sinks_ = read_sinks(context, *this);
}

Model::~Model() = default;

const SequenceState* Model::sinks(DType cache_dtype) const {
  return sinks_.empty() ? nullptr : sinks_.at(static_cast<size_t>(cache_dtype)).get();
}

ConstTensorView Model::rope_factors() const {
  return rope_factors_.defined() ? ConstTensorView(rope_factors_) : ConstTensorView();
}

const io::GgufMetadata* Model::metadata() const {
  const auto* file = dynamic_cast<const io::GgufFile*>(source_.get());
  return file == nullptr ? nullptr : &file->metadata();
}

int64_t Model::bytes_per_token() const {
  int64_t bytes = head_.bytes() + expert_bytes_per_token();
  for (const Layer& layer : layers_) bytes += layer_bytes(layer);
  return bytes;
}

int64_t Model::expert_bytes_per_token() const {
  int64_t routed = 0;
  for (const Layer& layer : layers_) {
    for (const ops::MatmulWeight& weight : layer.experts.weights) routed += weight.bytes();
  }
  return routed == 0 ? 0 : routed / config_.moe.num_experts * config_.moe.experts_per_token;
}

bool Model::experts_are_mapped() const {
  return std::any_of(layers_.begin(), layers_.end(), [](const Layer& layer) {
    return !layer.experts.weights.empty() && !layer.experts.weights[0].owns_memory();
  });
}

void Model::drop_experts() const {
  ModelWeights views = weights_;
  std::unordered_set<const std::byte*> experts;
  for_each_tensor(config_, views, [&](const TensorSlot& slot) {
    if (slot.use == TensorUse::kExperts) experts.insert(slot.view->data());
  });
  for (const io::TensorEntry& entry : source_->tensors()) {
    if (experts.contains(entry.view.data())) source_->drop(entry);
  }
}

}  // namespace spb::model
