#include "model/forward.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "ops/embedding/embedding.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"
#include "ops/softmax_attention/softmax_attention.h"
#include "ops/swiglu/swiglu.h"

namespace spb::model {
namespace {

int64_t wanted_rows(const SequenceSlice& slice) {
  switch (slice.logits) {
    case Logits::kNone: return 0;
    case Logits::kLast: return 1;
    case Logits::kAll: break;
  }
  return static_cast<int64_t>(slice.tokens.size());
}

// The rows of all slices, one after another, on their way through the layers.
struct Batch {
  std::span<const SequenceSlice> slices;
  std::vector<int64_t> positions;  // of every row
  TensorView residual;             // [N, hidden]: the stream that layers add to
  TensorView delta;                // [N, hidden]: the last layer's contribution, not yet added
};

// A view of rows of one slice, shaped [tokens, heads, head_dim].
TensorView heads_of(TensorView matrix, int64_t first, int64_t count, int64_t head_dim) {
  const TensorView rows = matrix.rows(first, count);
  return rows.reshaped(Shape{count, matrix.shape().last() / head_dim, head_dim});
}

class ForwardPass {
 public:
  ForwardPass(Context& context, const Model& model)
      : context_(context), arena_(context.arena()), model_(model), config_(model.config()) {}

  void run(std::span<const SequenceSlice> slices, TensorView logits) {
    const Arena::Scope scope(arena_);
    Batch batch = embed(slices);
    for (int64_t i = 0; i < config_.num_layers(); ++i) {
      const Arena::Scope layer_scope(arena_);
      const Layer& layer = model_.layer(i);
      const TensorView mixed = mix(layer, i, batch);
      if (i + 1 == config_.num_layers()) return finish(layer, batch, mixed, logits);
      project(mixed, {{&layer.o, batch.delta}});
      feed_forward(layer, batch);
    }
  }

 private:
  struct Output {
    const Projection* projection;
    TensorView y;
  };

  void project(ConstTensorView x, std::initializer_list<Output> outputs) {
    std::vector<ops::MatmulTarget> targets;
    for (const Output& output : outputs) {
      const ConstTensorView bias = output.projection->bias.defined()
                                       ? ConstTensorView(output.projection->bias)
                                       : ConstTensorView();
      targets.push_back({&output.projection->weight, bias, output.y});
    }
    ops::matmul(context_, {x, targets});
  }

  TensorView rows(int64_t count, int64_t columns) { return arena_.tensor(Shape{count, columns}); }

  // residual += delta, then the norm of it.
  TensorView add_and_norm(Batch& batch, const Tensor& weight) {
    const TensorView normed = rows(batch.delta.shape()[0], config_.hidden_size);
    ops::rms_norm(context_, {batch.delta, batch.residual, weight, normed, norm_eps()});
    return normed;
  }

  Batch embed(std::span<const SequenceSlice> slices) {
    Batch batch{slices, {}, {}, {}};
    std::vector<int32_t> ids;
    for (const SequenceSlice& slice : slices) {
      ids.insert(ids.end(), slice.tokens.begin(), slice.tokens.end());
      for (size_t i = 0; i < slice.tokens.size(); ++i) {
        batch.positions.push_back(slice.state->position() + static_cast<int64_t>(i));
      }
    }
    const auto count = static_cast<int64_t>(ids.size());
    batch.residual = rows(count, config_.hidden_size);
    batch.delta = rows(count, config_.hidden_size);
    std::memset(batch.residual.data(), 0, static_cast<size_t>(batch.residual.bytes()));
    ops::embedding(context_, {ids, model_.embeddings(), batch.delta});
    return batch;
  }

  // norm -> q, k, v -> token mixer; returns the heads' outputs [N, query_size].
  TensorView mix(const Layer& layer, int64_t index, Batch& batch) {
    const TensorView normed = add_and_norm(batch, layer.attn_norm);
    const int64_t count = normed.shape()[0];
    const TensorView q = rows(count, config_.query_size());
    const TensorView k = rows(count, config_.kv_size());
    const TensorView v = rows(count, config_.kv_size());
    if (layer.mixer == Mixer::kLinear) {
      mix_linear(layer, index, batch, normed, q, k, v);
    } else {
      mix_softmax(layer, index, batch, normed, q, k, v);
    }
    return q;
  }

  void mix_softmax(const Layer& layer, int64_t index, const Batch& batch, ConstTensorView normed,
                   TensorView q, TensorView k, TensorView v) {
    project(normed, {{&layer.q, q}, {&layer.k, k}, {&layer.v, v}});
    const int64_t count = q.shape()[0];
    rotate(heads_of(q, 0, count, config_.head_dim), batch);
    rotate(heads_of(k, 0, count, config_.head_dim), batch);
    int64_t first = 0;
    for (const SequenceSlice& slice : batch.slices) {
      const auto tokens = static_cast<int64_t>(slice.tokens.size());
      auto& cache = std::get<KeyValueCache>(slice.state->layer(index));
      attend(cache, slice.state->position(), heads_of(q, first, tokens, config_.head_dim),
             heads_of(k, first, tokens, config_.head_dim),
             heads_of(v, first, tokens, config_.head_dim));
      first += tokens;
    }
  }

  void rotate(TensorView heads, const Batch& batch) {
    ops::rope(context_, {heads, batch.positions, model_.rope_factors(), config_.rope_theta,
                         config_.rope_pairs});
  }

  void attend(KeyValueCache& cache, int64_t position, TensorView q, TensorView k, TensorView v) {
    ops::append_to_cache(context_, {k, v, cache.keys, cache.values, position});
    ops::softmax_attention(
        context_, {q, cache.keys, cache.values, q, position, cache.window_size, attention_scale()});
  }

  void mix_linear(const Layer& layer, int64_t index, const Batch& batch, ConstTensorView normed,
                  TensorView q, TensorView k, TensorView v) {
    const int64_t count = q.shape()[0];
    const TensorView gate = rows(count, config_.kv_size());
    const TensorView low_rank = rows(count, config_.gate_low_rank);
    project(normed, {{&layer.q, q}, {&layer.k, k}, {&layer.v, v}, {&layer.gate_down, low_rank}});
    project(low_rank, {{&layer.gate_up, gate}});
    ops::gated_linear_attention_inputs(
        context_, {q, k, gate, static_cast<float>(config_.gate_logit_normalizer)});
    int64_t first = 0;
    for (const SequenceSlice& slice : batch.slices) {
      const auto tokens = static_cast<int64_t>(slice.tokens.size());
      auto& recurrent = std::get<RecurrentState>(slice.state->layer(index));
      const TensorView o = heads_of(q, first, tokens, config_.head_dim);
      ops::gated_linear_attention(context_, {o, heads_of(k, first, tokens, config_.head_dim),
                                             heads_of(v, first, tokens, config_.head_dim),
                                             heads_of(gate, first, tokens, config_.head_dim),
                                             recurrent.state, o, attention_scale()});
      first += tokens;
    }
    const TensorView heads = q.reshaped(Shape{count * config_.num_heads, config_.head_dim});
    ops::rms_norm(context_, {heads, {}, layer.g_norm, heads, norm_eps()});
  }

  void feed_forward(const Layer& layer, Batch& batch) {
    const TensorView normed = add_and_norm(batch, layer.mlp_norm);
    const int64_t count = normed.shape()[0];
    const TensorView gate = rows(count, config_.intermediate_size);
    const TensorView up = rows(count, config_.intermediate_size);
    project(normed, {{&layer.mlp_gate, gate}, {&layer.mlp_up, up}});
    ops::swiglu(context_, {gate, up, gate});
    project(gate, {{&layer.mlp_down, batch.delta}});
  }

  // The rest of the last layer and the head, only for the rows whose logits are wanted.
  void finish(const Layer& layer, Batch& batch, ConstTensorView mixed, TensorView logits) {
    const int64_t wanted = logits_rows(batch.slices);
    if (wanted == 0) return;
    const TensorView kept_mixed = keep_wanted(batch, mixed, wanted);
    batch.residual = keep_wanted(batch, batch.residual, wanted);
    batch.delta = rows(wanted, config_.hidden_size);
    project(kept_mixed, {{&layer.o, batch.delta}});
    feed_forward(layer, batch);
    const TensorView normed = add_and_norm(batch, model_.norm_weight());
    const ops::MatmulTarget target{&model_.head(), {}, logits};
    ops::matmul(context_, {normed, {&target, 1}});
  }

  TensorView keep_wanted(const Batch& batch, ConstTensorView all, int64_t wanted) {
    const TensorView kept = rows(wanted, all.shape().last());
    int64_t source = 0;
    int64_t target = 0;
    for (const SequenceSlice& slice : batch.slices) {
      source += static_cast<int64_t>(slice.tokens.size());
      const int64_t count = wanted_rows(slice);
      std::memcpy(kept.row(target), all.row(source - count),
                  static_cast<size_t>(count * all.row_stride_bytes()));
      target += count;
    }
    return kept;
  }

  float norm_eps() const { return static_cast<float>(config_.norm_eps); }
  float attention_scale() const {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
  }

  Context& context_;
  Arena& arena_;
  const Model& model_;
  const ModelConfig& config_;
};

void check_slices(const Model& model, std::span<const SequenceSlice> slices, TensorView logits) {
  const int64_t vocab = model.config().vocab_size;
  check(!slices.empty(), "forward: slices: expected at least one");
  for (const SequenceSlice& slice : slices) {
    check(slice.state != nullptr, "forward: a slice has no state");
    slice.state->check_room(static_cast<int64_t>(slice.tokens.size()));
    for (const int32_t id : slice.tokens) {
      check(id >= 0 && id < vocab, "forward: token: expected an id from 0 to {}, got {}", vocab - 1,
            id);
    }
  }
  const int64_t wanted = logits_rows(slices);
  check(wanted == 0 || (logits.defined() && logits.shape() == Shape{wanted, vocab} &&
                        logits.dtype() == DType::kF32),
        "forward: logits: expected f32 [{}, {}], got {}", wanted, vocab,
        logits.shape().to_string());
}

}  // namespace

int64_t logits_rows(std::span<const SequenceSlice> slices) {
  int64_t total = 0;
  for (const SequenceSlice& slice : slices) total += wanted_rows(slice);
  return total;
}

void forward(Context& context, const Model& model, std::span<const SequenceSlice> slices,
             TensorView logits) {
  check_slices(model, slices, logits);
  ForwardPass(context, model).run(slices, logits);
  for (const SequenceSlice& slice : slices) {
    slice.state->advance(static_cast<int64_t>(slice.tokens.size()));
  }
}

}  // namespace spb::model
