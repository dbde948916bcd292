// SequenceState: the memory a model keeps of one sequence.
//
// Typed per mixer. A kLinear layer has a recurrent state of constant size; a kWindow layer a ring
// of the last positions; a kFull layer a cache of all of them. Caches are reserved for their
// largest size at once but backed by memory only as positions are written.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "core/buffer.h"
#include "model/config.h"

namespace spb::model {

struct StateOptions {
  int64_t max_context = 0;  // positions a kFull layer can hold; 0: the config's context length
  int64_t max_chunk = 512;  // most tokens of this sequence in one forward call
  DType cache_dtype = DType::kF16;  // f32, f16 or bf16: keys and values of softmax mixers
};

// Keys and values [num_kv_heads, capacity, head_dim]; position p lives in slot p mod capacity.
struct KeyValueCache {
  Tensor keys;
  Tensor values;
  int64_t window_size = 0;  // positions visible, current one included; 0: all
};

// S [num_kv_heads, head_dim, head_dim] f32: one state serves a whole group of query heads.
struct RecurrentState {
  Tensor state;
};

using LayerState = std::variant<KeyValueCache, RecurrentState>;

class SequenceState {
 public:
  // Usage error when the options are out of range.
  SequenceState(const ModelConfig& config, const StateOptions& options = {});

  // Tokens seen so far, which is the position of the next one.
  int64_t position() const { return position_; }
  // Most positions that fit, or -1 when there is no limit (no kFull layer).
  int64_t max_context() const { return max_context_; }
  int64_t max_chunk() const { return max_chunk_; }

  // Usage error naming the limit unless `tokens` more fit in one forward call.
  void check_room(int64_t tokens) const;
  void advance(int64_t tokens) { position_ += tokens; }

  LayerState& layer(int64_t index) { return layers_[static_cast<size_t>(index)]; }

  // Back to the empty sequence.
  void clear();

  // Pretends that `position` tokens have been seen: fills all that would have been written with
  // small random values. For benchmarks at a depth whose real prefill would take hours.
  void fill_random(int64_t position, uint64_t seed);

 private:
  std::vector<LayerState> layers_;
  int64_t position_ = 0;
  int64_t max_context_ = -1;
  int64_t max_chunk_ = 0;
};

// Bytes of state after `context` positions, by kind; what `inspect` prints.
struct StateBytes {
  int64_t recurrent = 0;
  int64_t window = 0;
  int64_t full = 0;
  int64_t total() const { return recurrent + window + full; }
};
StateBytes state_bytes(const ModelConfig& config, const StateOptions& options, int64_t context);

}  // namespace spb::model
