#include "model/state.h"

#include <algorithm>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/rng.h"

namespace spb::model {
namespace {

// Used where neither the user nor the file says how long a context should be possible.
constexpr int64_t kDefaultContext = 4096;
constexpr int64_t kMaxChunk = 1 << 16;

int64_t full_capacity(const ModelConfig& config, const StateOptions& options) {
  if (options.max_context > 0) return options.max_context;
  return config.context_length > 0 ? config.context_length : kDefaultContext;
}

// A chunk of L queries sees the window of its first one: window + L - 1 positions at once.
int64_t ring_capacity(const ModelConfig& config, const StateOptions& options) {
  return config.visible_window() + options.max_chunk - 1;
}

KeyValueCache make_cache(const ModelConfig& config, const StateOptions& options, int64_t capacity,
                         int64_t window_size) {
  const Shape shape{config.num_kv_heads, capacity, config.head_dim};
  return {Tensor(options.cache_dtype, shape), Tensor(options.cache_dtype, shape), window_size};
}

LayerState make_layer(const ModelConfig& config, const StateOptions& options, Mixer mixer) {
  switch (mixer) {
    case Mixer::kFull: return make_cache(config, options, full_capacity(config, options), 0);
    case Mixer::kWindow:
      return make_cache(config, options, ring_capacity(config, options), config.visible_window());
    case Mixer::kLinear: break;
  }
  const Shape shape{config.num_kv_heads, config.head_dim, config.head_dim};
  return RecurrentState{Tensor(DType::kF32, shape)};
}

void fill_rows(TensorView view, int64_t head, int64_t slots, Rng& rng) {
  const int64_t capacity = view.shape()[1];
  std::vector<float> row(static_cast<size_t>(view.shape().last()));
  for (int64_t slot = 0; slot < slots; ++slot) {
    for (float& x : row) x = rng.uniform(-0.5f, 0.5f);
    quantize_row(view.dtype(), row.data(), view.row(head * capacity + slot), view.shape().last());
  }
}

void fill_random(KeyValueCache& cache, int64_t position, Rng& rng) {
  const int64_t slots = std::min(position, cache.keys.shape()[1]);
  for (int64_t head = 0; head < cache.keys.shape()[0]; ++head) {
    fill_rows(cache.keys, head, slots, rng);
    fill_rows(cache.values, head, slots, rng);
  }
}

void fill_random(RecurrentState& state, int64_t, Rng& rng) {
  float* s = state.state.as<float>();
  for (int64_t i = 0; i < state.state.shape().elements(); ++i) s[i] = rng.uniform(-0.5f, 0.5f);
}

}  // namespace

SequenceState::SequenceState(const ModelConfig& config, const StateOptions& options)
    : max_chunk_(options.max_chunk) {
  check(is_float(options.cache_dtype), "state: cache type: expected f32, f16 or bf16, got {}",
        name(options.cache_dtype));
  check(options.max_chunk >= 1 && options.max_chunk <= kMaxChunk,
        "state: chunk: expected 1 to {} tokens, got {}", kMaxChunk, options.max_chunk);
  check(options.max_context >= 0 && options.max_context <= int64_t{1} << 32,
        "state: context: expected 0 to 2^32 tokens, got {}", options.max_context);
  if (config.layers_with(Mixer::kFull) > 0) max_context_ = full_capacity(config, options);
  for (const Mixer mixer : config.mixers) layers_.push_back(make_layer(config, options, mixer));
}

void SequenceState::check_room(int64_t tokens) const {
  check(tokens >= 1 && tokens <= max_chunk_, "state: chunk: expected 1 to {} tokens, got {}",
        max_chunk_, tokens);
  check(max_context_ < 0 || position_ + tokens <= max_context_,
        "context: {} tokens are used and {} more were given, but there is room for {}; give a "
        "larger --context",
        position_, tokens, max_context_);
}

void SequenceState::clear() {
  position_ = 0;
  for (LayerState& layer : layers_) {
    // Caches need no clearing: positions not yet written are never visible.
    if (auto* recurrent = std::get_if<RecurrentState>(&layer)) {
      float* s = recurrent->state.as<float>();
      std::fill(s, s + recurrent->state.shape().elements(), 0.0f);
    }
  }
}

void SequenceState::fill_random(int64_t position, uint64_t seed) {
  check(max_context_ < 0 || position <= max_context_,
        "state: fill: expected at most {} positions, got {}", max_context_, position);
  Rng rng(seed);
  for (LayerState& layer : layers_) {
    std::visit([&](auto& state) { model::fill_random(state, position, rng); }, layer);
  }
  position_ = position;
}

StateBytes state_bytes(const ModelConfig& config, const StateOptions& options, int64_t context) {
  const int64_t recurrent = config.num_kv_heads * config.head_dim * config.head_dim * 4;
  const int64_t position =
      2 * config.num_kv_heads * row_bytes(options.cache_dtype, config.head_dim);
  const int64_t ring = std::min(context, ring_capacity(config, options));
  StateBytes bytes;
  bytes.recurrent = config.layers_with(Mixer::kLinear) * recurrent;
  bytes.window = config.layers_with(Mixer::kWindow) * ring * position;
  bytes.full = config.layers_with(Mixer::kFull) * context * position;
  return bytes;
}

}  // namespace spb::model
