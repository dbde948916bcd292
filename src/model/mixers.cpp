// The token mixers of a layer.
#include <cmath>

#include "core/transfer.h"
#include "model/forward_pass.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"
#include "ops/softmax_attention/softmax_attention.h"

namespace spb::model {
namespace {

// Rows shaped [tokens, heads, head_dim].
TensorView heads_of(TensorView rows, int64_t head_dim) {
  return rows.reshaped(Shape{rows.shape()[0], rows.shape().last() / head_dim, head_dim});
}

std::vector<int64_t> asking_positions(const Batch& batch) {
  std::vector<int64_t> positions;
  for (const Segment& segment : batch.asking) {
    const auto first = batch.positions.begin() + segment.first;
    positions.insert(positions.end(), first, first + segment.count);
  }
  return positions;
}

void show_as_sinks(const KeyValueCache& cache, ops::SoftmaxAttentionArgs& args) {
  args.sink_keys = cache.keys;
  args.sink_values = cache.values;
  args.sink_key_scales = cache.key_scales;
  args.sink_value_scales = cache.value_scales;
}

}  // namespace

TensorView ForwardPass::mix(int64_t index, const Batch& batch) {
  const Layer& layer = model_.layer(index);
  const Heads heads = project_heads(index, norm(batch, layer.attn_norm), batch);
  return mix_branches(layer, index, heads, batch);
}

bool ForwardPass::can_leave_out(int64_t index) const {
  const Layer& layer = model_.layer(index);
  return !layer.config.has(Mixer::kLinear) && !layer.config.parallel() &&
         hooks_.observer == nullptr;
}

TensorView ForwardPass::keep_asking(const Batch& batch, TensorView all) {
  if (batch.asking_rows() == all.shape()[0]) return all;
  const TensorView kept =
      arena_.tensor(all.dtype(), Shape{batch.asking_rows(), all.shape().last()});
  int64_t row = 0;
  for (const Segment& segment : batch.asking) {
    copy_tensor(context_, all.rows(segment.first, segment.count), kept.rows(row, segment.count));
    row += segment.count;
  }
  return kept;
}

void ForwardPass::keep_asking(Batch& batch) { batch.residual = keep_asking(batch, batch.residual); }

// Softmax mixers alone: keys and values of all rows, queries of those that ask.
void ForwardPass::project_asking(int64_t index, TensorView normed, const Heads& heads,
                                 const Batch& batch) {
  const Layer& layer = model_.layer(index);
  const Place place{index, Site::kMixerInput};
  project(place, normed, {{&layer.k, heads.k}, {&layer.v, heads.v}});
  if (batch.asking.empty()) return;
  project(place, keep_asking(batch, normed), {{&layer.q, heads.q}});
}

ForwardPass::Heads ForwardPass::project_heads(int64_t index, TensorView normed,
                                              const Batch& batch) {
  const Layer& layer = model_.layer(index);
  const Place place{index, Site::kMixerInput};
  const int64_t count = normed.shape()[0];
  Heads heads{rows(batch.asking_rows(), config_.query_size()), rows(count, config_.kv_size()),
              rows(count, config_.kv_size()), TensorView()};
  if (!batch.all_ask()) {
    project_asking(index, normed, heads, batch);
    return heads;
  }
  if (layer.config.has(Mixer::kLinear)) heads.gate = float_rows(count, config_.kv_size());
  const Output q{&layer.q, heads.q};
  const Output k{&layer.k, heads.k};
  const Output v{&layer.v, heads.v};
  if (layer.gate.defined()) {
    project(place, normed, {q, k, v, {&layer.gate, heads.gate}});
  } else if (layer.gate_down.defined()) {
    const TensorView low_rank = rows(count, config_.gate_low_rank);
    project(place, normed, {q, k, v, {&layer.gate_down, low_rank}});
    project_dense(low_rank, {{&layer.gate_up, heads.gate}});
  } else {
    project(place, normed, {q, k, v});
  }
  return heads;
}

// Every mixer works in place on queries and keys, so all branches but the last take copies.
TensorView ForwardPass::mix_branches(const Layer& layer, int64_t index, const Heads& heads,
                                     const Batch& batch) {
  const std::vector<Mixer>& mixers = layer.config.mixers;
  const bool parallel = layer.config.parallel();
  const TensorView sum = parallel ? rows(batch.rows(), config_.query_size()) : heads.q;
  for (size_t branch = 0; branch < mixers.size(); ++branch) {
    const Arena::Scope scope(arena_);
    const bool last = branch + 1 == mixers.size();
    const Heads own = last ? heads : Heads{copy(heads.q), copy(heads.k), heads.v, heads.gate};
    if (mixers[branch] == Mixer::kLinear) {
      mix_linear(own, index, branch, batch);
    } else {
      mix_softmax(own, index, branch, batch);
    }
    const Tensor& norm = layer.head_norms[static_cast<size_t>(mixers[branch])];
    if (norm.defined()) add_normalized(norm, own.q, sum, branch > 0);
  }
  return sum;
}

TensorView ForwardPass::copy(TensorView matrix) {
  const TensorView out = rows(matrix.shape()[0], matrix.shape()[1]);
  copy_tensor(context_, matrix, out);
  return out;
}

void ForwardPass::add_normalized(const Tensor& weight, TensorView from, TensorView sum, bool add) {
  const Shape heads{from.shape()[0] * config_.num_heads, config_.head_dim};
  ops::rms_norm(context_, {from.reshaped(heads), {}, weight, sum.reshaped(heads), norm_eps(), add});
}

void ForwardPass::mix_softmax(const Heads& heads, int64_t index, size_t branch,
                              const Batch& batch) {
  if (!batch.sinks) rotate(heads, batch);
  Heads used = heads;
  if (config_.spikes) {
    // Parallel mixers share the values, and linear ones take them as they are.
    if (model_.layer(index).config.parallel()) used.v = copy(heads.v);
    if (!batch.asking.empty()) fire_queries(index, used.q);
  }
  attend(used, index, branch, batch);
}

void ForwardPass::rotate(const Heads& heads, const Batch& batch) {
  const TensorView q = heads_of(heads.q, config_.head_dim);
  const TensorView k = heads_of(heads.k, config_.head_dim);
  const auto turn = [&](TensorView x, std::span<const int64_t> positions, TensorView also) {
    ops::rope(context_,
              {x, positions, model_.rope_factors(), config_.rope_theta, config_.rope_pairs, also});
  };
  if (batch.all_ask()) return turn(q, batch.positions, k);
  turn(k, batch.positions, {});
  if (!batch.asking.empty()) turn(q, asking_positions(batch), {});
}

// The caches of some segments, from their first rows on.
std::vector<ops::CachedSequence> ForwardPass::cached(std::span<const Segment> segments,
                                                     int64_t index, size_t branch,
                                                     const Batch& batch) {
  std::vector<ops::CachedSequence> sequences;
  for (const Segment& segment : segments) {
    auto& cache = std::get<KeyValueCache>(segment.state->mixer(index, branch));
    const int64_t position = batch.sinks ? 0 : batch.positions[static_cast<size_t>(segment.first)];
    sequences.push_back(
        {segment.count, cache.keys, cache.values, position, cache.key_scales, cache.value_scales});
  }
  return sequences;
}

void ForwardPass::attend(const Heads& heads, int64_t index, size_t branch, const Batch& batch) {
  append(heads, index, cached(batch.segments, index, branch, batch));
  if (batch.asking.empty()) return;
  const std::vector<ops::CachedSequence> sequences = cached(batch.asking, index, branch, batch);
  const TensorView q = heads_of(heads.q, config_.head_dim);
  ops::SoftmaxAttentionArgs args;
  args.q = q;
  args.o = q;
  args.scale = attention_scale();
  args.window_size =
      std::get<KeyValueCache>(batch.segments[0].state->mixer(index, branch)).window_size;
  if (batch.sinks) {
    show_as_sinks(std::get<KeyValueCache>(batch.segments[0].state->mixer(index, branch)), args);
  } else {
    args.sequences = sequences;
    if (const SequenceState* sinks = batch.segments[0].state->sinks()) {
      show_as_sinks(std::get<KeyValueCache>(sinks->mixer(index, branch)), args);
    }
  }
  ops::softmax_attention(context_, args);
}

void ForwardPass::append(const Heads& heads, int64_t index,
                         std::span<const ops::CachedSequence> sequences) {
  const TensorView k = heads_of(heads.k, config_.head_dim);
  const TensorView v = heads_of(heads.v, config_.head_dim);
  if (config_.spikes) {
    round_heads({index, Site::kKey}, k, sequences[0].keys.dtype());
    round_heads({index, Site::kValue}, v, sequences[0].keys.dtype());
  }
  try {
    ops::append_to_cache(context_, {k, v, {}, {}, 0, {}, {}, sequences});
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("layer {}, keys and values: {}", index, error.what()));
  }
}

void ForwardPass::mix_linear(const Heads& heads, int64_t index, size_t branch, const Batch& batch) {
  // The attention maps queries and keys as it reads them, where it can.
  const bool rectify = config_.feature_map == ops::FeatureMap::kRelu;
  ops::gated_linear_attention_inputs(
      context_, {.q = rectify ? TensorView() : heads.q,
                 .k = rectify ? TensorView() : heads.k,
                 .g = heads.gate,
                 .gate_logit_normalizer = static_cast<float>(config_.gate_logit_normalizer),
                 .feature_map = config_.feature_map,
                 .tied_gate = config_.tied_gate});
  std::vector<ops::GatedLinearAttentionSequence> sequences;
  for (const Segment& segment : batch.segments) {
    auto& recurrent = std::get<RecurrentState>(segment.state->mixer(index, branch));
    sequences.push_back({segment.count, recurrent.state});
  }
  const TensorView o = heads_of(heads.q, config_.head_dim);
  ops::GatedLinearAttentionArgs args;
  args.q = o;
  args.k = heads_of(heads.k, config_.head_dim);
  args.v = heads_of(heads.v, config_.head_dim);
  args.g = heads_of(heads.gate, config_.head_dim);
  args.o = o;
  args.scale = attention_scale();
  args.sequences = sequences;
  args.rectify = rectify;
  ops::gated_linear_attention(context_, args);
}

float ForwardPass::attention_scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
}

}  // namespace spb::model
