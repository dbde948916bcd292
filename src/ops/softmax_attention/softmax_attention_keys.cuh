// What the CUDA kernels of softmax_attention see of a call: keys in the order of visiting, first
// the sinks, then positions.
#pragma once

#include "core/cuda/pack.cuh"
#include "ops/softmax_attention/softmax_attention_cuda.h"

namespace spb::ops {

// Keys and values of one source. Heads of `capacity` rows of head_dim; row r of head h has the
// scale [h * capacity + r] with i8, none otherwise.
struct KeyRows {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
  int64_t capacity = 0;
};

struct VisibleKeys {
  KeyRows sinks;  // capacity 0: none
  KeyRows ring;   // capacity 0: none
  int64_t first_position;
  int64_t window;  // positions a query sees; the largest number when there is no window

  // First position that query i sees, and the one after the last.
  __device__ int64_t begin(int64_t i) const {
    const int64_t position = first_position + i;
    return position >= window ? position - window + 1 : 0;
  }
  __device__ int64_t end(int64_t i) const {
    return ring.capacity == 0 ? 0 : first_position + i + 1;
  }
};

inline KeyRows key_rows(ConstTensorView keys, ConstTensorView values, ConstTensorView key_scales,
                        ConstTensorView value_scales) {
  if (!keys.defined()) return {};
  const auto scales = [](const ConstTensorView& tensor) {
    return tensor.defined() ? tensor.as<float>() : nullptr;
  };
  return {keys.data(), values.data(), scales(key_scales), scales(value_scales), keys.shape()[1]};
}

inline VisibleKeys visible_keys(const SoftmaxAttentionArgs& args) {
  constexpr int64_t kEverything = int64_t{1} << 62;
  return {key_rows(args.sink_keys, args.sink_values, args.sink_key_scales, args.sink_value_scales),
          key_rows(args.keys, args.values, args.key_scales, args.value_scales), args.first_position,
          args.window_size > 0 ? args.window_size : kEverything};
}

// The keys that stand for all: dtype and heads are alike.
inline ConstTensorView any_keys(const SoftmaxAttentionArgs& args) {
  if (!args.sequences.empty()) return args.sequences[0].keys;
  return args.keys.defined() ? args.keys : args.sink_keys;
}

// Keys from `first` on of a source; for positions `first` is a position.
struct Tile {
  const KeyRows* rows;
  int64_t first;
  int64_t end;  // keys from here on are seen by no query of the block
  bool sinks;
};

// The tiles of kTileKeys keys that some query of a block sees, sinks first.
template <int kTileKeys>
struct Tiles {
  int64_t sink_tiles;
  int64_t count;
  int64_t first_position;  // of the first tile of positions
  int64_t end_position;

  __device__ Tiles(const VisibleKeys& visible, int64_t first_query, int64_t last_query) {
    sink_tiles = (visible.sinks.capacity + kTileKeys - 1) / kTileKeys;
    first_position = visible.begin(first_query) / kTileKeys * kTileKeys;
    end_position = visible.end(last_query);
    const int64_t keys = end_position > first_position ? end_position - first_position : 0;
    count = sink_tiles + (keys + kTileKeys - 1) / kTileKeys;
  }

  __device__ Tile at(const VisibleKeys& visible, int64_t index) const {
    if (index < sink_tiles) {
      return {&visible.sinks, index * kTileKeys, visible.sinks.capacity, true};
    }
    return {&visible.ring, first_position + (index - sink_tiles) * kTileKeys, end_position, false};
  }
};

// Few queries, of one sequence or of one each: the keys of each are cut into parts, whose sums are
// joined afterwards. How many depends on nothing but the number of keys, so that a sequence gives
// the same bits alone and in any batch.
struct PartsSequence {
  KeyRows ring;
  int64_t first_position;
};

inline constexpr int64_t kPartKeys = 64;  // shorter parts cost more in joining than they save
inline constexpr int64_t kMaxParts = 256;

struct PartsProblem {
  PartsSequence sequences[kMaxBatchedSequences];
  KeyRows sinks;
  int64_t window;
  const int64_t* advance;  // Context::advance()
  int64_t tokens;
  bool batch;  // a sequence for each token; else all tokens are of the first one
  int heads;
  int kv_heads;
  int head_dim;
  int parts;         // at most
  float scale_log2;  // scale * log2(e): softmax in powers of 2
  float* partial;    // [tokens, heads, parts, head_dim + 2]: sums, then maximum and weight

  __device__ float* slot(int64_t token, int head, int part) const {
    return partial + ((token * heads + head) * parts + part) * (head_dim + 2);
  }

  // What a token sees: query 0 of the result.
  __device__ VisibleKeys visible(int64_t token) const {
    const PartsSequence& sequence = sequences[batch ? token : 0];
    const int64_t position = sequence.first_position + (batch ? 0 : token);
    return {sinks, sequence.ring, advance == nullptr ? position : position + *advance, window};
  }
};

// Keys of one query, counted from the first sink.
struct PartsOfKeys {
  int64_t begin;  // position of the first key after the sinks
  int64_t keys;
  int count;

  __device__ explicit PartsOfKeys(const VisibleKeys& visible)
      : begin(visible.begin(0)), keys(visible.sinks.capacity + visible.end(0) - begin) {
    count = static_cast<int>(max(int64_t{1}, min(keys / kPartKeys, kMaxParts)));
  }
  __device__ int64_t first(int part) const { return keys * part / count; }
};

// The sums of parts on tensor cores, all query heads of a group as the rows of one product: q and
// caches bf16, head_dim 64 or 128, groups of up to 16.
bool parts_tiles_fit(const SoftmaxAttentionArgs& args);
void softmax_attention_parts_tiles(Context& context, const SoftmaxAttentionArgs& args,
                                   const PartsProblem& problem);

// The arguments with copies, in the arena, of what the queries see of caches of other dtypes.
SoftmaxAttentionArgs with_bf16_keys(Context& context, const SoftmaxAttentionArgs& args);

// Prefill on tensor cores: q and o bf16, head_dim 64 or 128; caches bf16 where it runs.
struct PrefillProblem {
  VisibleKeys visible;
  const __nv_bfloat16* q;
  __nv_bfloat16* o;
  int64_t tokens;
  int heads;
  int group;  // query heads of a key/value head
  int head_dim;
  float scale_log2;  // scale * log2(e): softmax in powers of 2
};
bool prefill_tiles_fit(const SoftmaxAttentionArgs& args);
void softmax_attention_prefill_tiles(Context& context, const SoftmaxAttentionArgs& args);

// The same on Hopper; a ring holds at least a tile.
inline constexpr int kWarpgroupTileKeys = 128;
void softmax_attention_prefill_warpgroups(Context& context, const PrefillProblem& problem);

}  // namespace spb::ops
