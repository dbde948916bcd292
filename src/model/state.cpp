#include "model/state.h"

#include <algorithm>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/int8_row.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "model/device_room.h"

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

KeyValueCache make_cache(const Device& device, DType dtype, const Shape& shape,
                         int64_t window_size) {
  KeyValueCache cache{Tensor(dtype, shape, device), Tensor(dtype, shape, device), window_size};
  if (dtype == DType::kI8) {
    cache.key_scales = Tensor(DType::kF32, Shape{shape[0], shape[1]}, device);
    cache.value_scales = Tensor(DType::kF32, cache.key_scales.shape(), device);
  }
  return cache;
}

MixerState make_mixer(const Device& device, const ModelConfig& config, const StateOptions& options,
                      Mixer mixer) {
  const DType dtype = cache_dtype(config, options, device);
  const auto slots = [&](int64_t capacity) {
    return Shape{config.num_kv_heads, capacity, config.head_dim};
  };
  switch (mixer) {
    case Mixer::kFull: return make_cache(device, dtype, slots(full_capacity(config, options)), 0);
    case Mixer::kWindow:
      return make_cache(device, dtype, slots(ring_capacity(config, options)),
                        config.visible_window());
    case Mixer::kLinear: break;
  }
  return RecurrentState{Tensor(DType::kF32, slots(config.head_dim), device)};
}

// Row `index` of keys or values, rounded to their dtype.
void write_row(const float* row, int64_t index, TensorView to, TensorView scales) {
  const int64_t columns = to.shape().last();
  if (to.dtype() == DType::kI8) {
    scales.as<float>()[index] =
        quantize_int8_row("state", index, row, columns, to.row_as<int8_t>(index));
  } else {
    quantize_row(to.dtype(), row, to.row(index), columns);
  }
}

void fill_rows(TensorView view, TensorView scales, int64_t head, int64_t slots, Rng& rng) {
  const int64_t capacity = view.shape()[1];
  std::vector<float> row(static_cast<size_t>(view.shape().last()));
  for (int64_t slot = 0; slot < slots; ++slot) {
    for (float& x : row) x = rng.uniform(-0.5f, 0.5f);
    write_row(row.data(), head * capacity + slot, view, scales);
  }
}

// change(view) of the tensor, or of a copy that is taken to the host and back.
template <typename Change>
void change_on_host(Tensor& tensor, Change change) {
  if (!tensor.device().is_cuda()) return change(tensor.view());
  Tensor host = to_host(tensor);
  change(host.view());
  overwrite(tensor, host.view().data());
}

void fill_random(KeyValueCache& cache, int64_t position, Rng& rng) {
  const int64_t slots = std::min(position, cache.keys.shape()[1]);
  const auto fill = [&](Tensor& rows, Tensor& scales) {
    change_on_host(rows, [&](TensorView host_rows) {
      change_on_host(scales, [&](TensorView host_scales) {
        for (int64_t head = 0; head < host_rows.shape()[0]; ++head) {
          fill_rows(host_rows, host_scales, head, slots, rng);
        }
      });
    });
  };
  fill(cache.keys, cache.key_scales);
  fill(cache.values, cache.value_scales);
}

void fill_random(RecurrentState& state, int64_t, Rng& rng) {
  change_on_host(state.state, [&](TensorView host) {
    float* s = host.as<float>();
    for (int64_t i = 0; i < host.shape().elements(); ++i) s[i] = rng.uniform(-0.5f, 0.5f);
  });
}

// On the device of the cache.
KeyValueCache rounded(const KeyValueCache& cache, DType dtype) {
  const Device device = cache.keys.device();
  const Tensor keys = to_host(cache.keys);
  const Tensor values = to_host(cache.values);
  KeyValueCache out = make_cache({}, dtype, keys.shape(), cache.window_size);
  for (int64_t row = 0; row < keys.shape().rows(); ++row) {
    write_row(keys.view().row_as<float>(row), row, out.keys, out.key_scales);
    write_row(values.view().row_as<float>(row), row, out.values, out.value_scales);
  }
  if (!device.is_cuda()) return out;
  const auto move = [&](const Tensor& host) {
    return host.defined() ? to_device(device, host) : Tensor();
  };
  return {move(out.keys), move(out.values), out.window_size, move(out.key_scales),
          move(out.value_scales)};
}

// What a mixer starts a sequence with. Positions of caches that were not written yet are never
// visible, but tiles on a CUDA device multiply their values by 0: they must be numbers.
void restart(KeyValueCache& cache, const MixerState*) {
  if (cache.values.device().is_cuda()) overwrite(cache.values, nullptr);
}

void restart(RecurrentState& recurrent, const MixerState* sinks) {
  overwrite(recurrent.state,
            sinks == nullptr ? nullptr : std::get<RecurrentState>(*sinks).state.view().data());
}

}  // namespace

DType cache_dtype(const ModelConfig& config, const StateOptions& options, const Device& device) {
  const DType dense = device.is_cuda() ? DType::kBF16 : DType::kF16;
  const DType dtype = options.cache_dtype.value_or(config.spikes ? DType::kI8 : dense);
  check(is_float(dtype) || dtype == DType::kI8,
        "state: cache type: expected f32, f16, bf16 or i8, got {}", name(dtype));
  return dtype;
}

SequenceState::SequenceState(const Model& model, const StateOptions& options)
    : sinks_(model.sinks(cache_dtype(model.config(), options, model.device()))),
      max_chunk_(options.max_chunk) {
  const ModelConfig& config = model.config();
  check(options.max_chunk >= 1 && options.max_chunk <= kMaxChunk,
        "state: chunk: expected 1 to {} tokens, got {}", kMaxChunk, options.max_chunk);
  check(options.max_context >= 0 && options.max_context <= int64_t{1} << 32,
        "state: context: expected 0 to 2^32 tokens, got {}", options.max_context);
  const int64_t capacity = full_capacity(config, options);
  if (config.layers_with(Mixer::kFull) > 0) max_context_ = capacity;
  if (model.device().is_cuda()) {
    check_state_fits(config, model.weights(), options, capacity, room_on(model.device()));
  }
  for (const LayerConfig& layer : config.layers) {
    LayerStates& states = layers_.emplace_back();
    for (const Mixer mixer : layer.mixers)
      states.push_back(make_mixer(model.device(), config, options, mixer));
  }
  clear();
}

SequenceState SequenceState::for_sinks(const ModelConfig& config, const Device& device) {
  const StateOptions options{config.sink_tokens, config.sink_tokens, DType::kF32};
  SequenceState state;
  state.max_chunk_ = config.sink_tokens;
  for (const LayerConfig& layer : config.layers) {
    LayerStates& states = state.layers_.emplace_back();
    for (const Mixer mixer : layer.mixers) {
      if (mixer == Mixer::kLinear) {
        states.push_back(make_mixer(device, config, options, mixer));
      } else {
        const Shape slots{config.num_kv_heads, config.sink_tokens, config.head_dim};
        states.push_back(make_cache(device, DType::kF32, slots, 0));
      }
    }
  }
  state.clear();
  return state;
}

SequenceState SequenceState::rounded(DType cache_dtype) const {
  SequenceState out;
  for (const LayerStates& layer : layers_) {
    LayerStates& states = out.layers_.emplace_back();
    for (const MixerState& state : layer) {
      if (const auto* cache = std::get_if<KeyValueCache>(&state)) {
        states.push_back(model::rounded(*cache, cache_dtype));
      } else {
        states.push_back(RecurrentState{to_host(std::get<RecurrentState>(state).state)});
      }
    }
  }
  return out;
}

Device SequenceState::device() const {
  const MixerState& state = layers_.front().front();
  if (const auto* cache = std::get_if<KeyValueCache>(&state)) return cache->keys.device();
  return std::get<RecurrentState>(state).state.device();
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
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    for (size_t branch = 0; branch < layers_[layer].size(); ++branch) {
      const MixerState* sinks =
          sinks_ == nullptr ? nullptr : &sinks_->mixer(static_cast<int64_t>(layer), branch);
      std::visit([&](auto& state) { restart(state, sinks); }, layers_[layer][branch]);
    }
  }
}

void SequenceState::fill_random(int64_t position, uint64_t seed) {
  check(max_context_ < 0 || position <= max_context_,
        "state: fill: expected at most {} positions, got {}", max_context_, position);
  Rng rng(seed);
  for (LayerStates& layer : layers_) {
    for (MixerState& mixer : layer) {
      std::visit([&](auto& state) { model::fill_random(state, position, rng); }, mixer);
    }
  }
  position_ = position;
}

StateBytes state_bytes(const ModelConfig& config, const StateOptions& options, int64_t context) {
  const int64_t recurrent = config.num_kv_heads * config.head_dim * config.head_dim * 4;
  const DType dtype = cache_dtype(config, options);
  const int64_t scale_bytes = dtype == DType::kI8 ? static_cast<int64_t>(sizeof(float)) : 0;
  const int64_t position =
      2 * config.num_kv_heads * (row_bytes(dtype, config.head_dim) + scale_bytes);
  const int64_t ring = std::min(context, ring_capacity(config, options));
  StateBytes bytes;
  bytes.recurrent = config.layers_with(Mixer::kLinear) * recurrent;
  bytes.window = config.layers_with(Mixer::kWindow) * ring * position;
  bytes.full = config.layers_with(Mixer::kFull) * context * position;
  return bytes;
}

}  // namespace spb::model
