// SequenceState: the memory a model keeps of one sequence.
//
// Typed per mixer. A linear mixer has a recurrent state of constant size; a window mixer a ring of
// the last positions; a full mixer a cache of all of them; a layer with parallel mixers has one for
// each. Caches are reserved for their largest size at once but backed by memory only as positions
// are written. Sink tokens are no part of a sequence: their keys and values belong to the model,
// and recurrent states begin with what the sinks left.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "core/buffer.h"
#include "model/model.h"

namespace spb::model {

struct StateOptions {
  int64_t max_context = 0;  // positions a full mixer can hold; 0: the config's context length
  int64_t max_chunk = 512;  // most tokens of this sequence in one forward call
  // Keys and values of softmax mixers: f32, f16, bf16, or i8 with a scale for each head of a
  // position. By default i8 in spiking models, which round to it anyway, and f16 in others.
  std::optional<DType> cache_dtype = std::nullopt;
};

// The one that a state of this model gets. Usage error when it cannot be a cache's.
DType cache_dtype(const ModelConfig& config, const StateOptions& options,
                  const Device& device = {});

// Keys and values [num_kv_heads, capacity, head_dim]; position p lives in slot p mod capacity.
struct KeyValueCache {
  Tensor keys;
  Tensor values;
  int64_t window_size = 0;  // positions visible, current one included; 0: all
  Tensor key_scales = {};   // [num_kv_heads, capacity] f32; with i8 only
  Tensor value_scales = {};
};

// S [num_kv_heads, head_dim, head_dim] f32: one state serves a whole group of query heads.
struct RecurrentState {
  Tensor state;
};

using MixerState = std::variant<KeyValueCache, RecurrentState>;

class SequenceState {
 public:
  // A sequence without tokens. The model must outlive it. Usage error when the options are out of
  // range.
  explicit SequenceState(const Model& model, const StateOptions& options = {});

  // The state that the sink tokens themselves fill (model/sinks.h): keys and values are those of
  // the sinks alone.
  static SequenceState for_sinks(const ModelConfig& config, const Device& device = {});
  // The same with keys and values in another dtype; recurrent states come to the host, from where
  // sequences begin with them. Work that still writes the state is not waited for.
  SequenceState rounded(DType cache_dtype) const;

  // Tokens seen so far, which is the position of the next one.
  int64_t position() const { return position_; }
  // Most positions that fit, or -1 when there is no limit (no kFull layer).
  int64_t max_context() const { return max_context_; }
  int64_t max_chunk() const { return max_chunk_; }

  Device device() const;  // where it lies: that of its model

  // Usage error naming the limit unless `tokens` more fit in one forward call.
  void check_room(int64_t tokens) const;
  void advance(int64_t tokens) { position_ += tokens; }

  MixerState& mixer(int64_t layer, size_t branch) { return mixers(layer)[branch]; }
  const MixerState& mixer(int64_t layer, size_t branch) const {
    return layers_[static_cast<size_t>(layer)][branch];
  }

  // Of the model, in the dtype of the caches; nullptr when there are none.
  const SequenceState* sinks() const { return sinks_; }

  // Back to the empty sequence.
  void clear();

  // Pretends that `position` tokens have been seen: fills all that would have been written with
  // small random values. For benchmarks at a depth whose real prefill would take hours.
  void fill_random(int64_t position, uint64_t seed);

 private:
  using LayerStates = std::vector<MixerState>;  // in the order of the layer's mixers

  SequenceState() = default;
  LayerStates& mixers(int64_t layer) { return layers_[static_cast<size_t>(layer)]; }

  std::vector<LayerStates> layers_;
  const SequenceState* sinks_ = nullptr;
  int64_t position_ = 0;
  int64_t max_context_ = -1;
  int64_t max_chunk_ = 0;
};

// Bytes of state after `context` positions, by kind; what `inspect` prints. Sinks are not counted:
// all sequences of a model share them.
struct StateBytes {
  int64_t recurrent = 0;
  int64_t window = 0;
  int64_t full = 0;
  int64_t total() const { return recurrent + window + full; }
};
StateBytes state_bytes(const ModelConfig& config, const StateOptions& options, int64_t context);

}  // namespace spb::model
