// The CPU form of softmax_attention, after its arguments have been checked.
#pragma once

#include "ops/softmax_attention/softmax_attention.h"
#include "ops/softmax_attention/softmax_attention_kernels.h"

namespace spb::ops {

// Keys and values that tokens see: those of the cache, or the sinks. Sinks are a source whose
// tokens all stand behind its last position, without a window.
struct KeySource {
  ConstTensorView keys;  // [kv heads, capacity, head_dim]
  ConstTensorView values;
  ConstTensorView key_scales;  // [kv heads, capacity]; undefined unless i8
  ConstTensorView value_scales;
  int64_t end = 0;             // one past the last position; 0: an empty source
  int64_t first_position = 0;  // of the first token of the call
  int64_t window_size = 1;     // never 0

  int64_t capacity() const { return keys.shape()[1]; }
  // The first position that the token at `position` sees.
  int64_t first_visible(int64_t position) const {
    const int64_t first = position - window_size + 1;
    return first > 0 ? first : 0;
  }
};

// The sizes of a call, by name, and what its tokens see.
struct AttentionShape {
  int64_t tokens;
  int64_t kv_heads;
  int64_t group;  // query heads per key/value head
  int64_t head_dim;
  int64_t padded_dim;
  int dtype;  // of the sources
  KeySource sinks;
  KeySource cache;

  explicit AttentionShape(const SoftmaxAttentionArgs& args);
};

const SoftmaxAttentionKernels& softmax_attention_kernels();

// Rows whose first_position counts from the first token of the call, as a source sees them.
template <typename Rows>
Rows facing(const KeySource& source, Rows rows) {
  rows.first_position += source.first_position;
  rows.window_size = source.window_size;
  return rows;
}

// The scales of one key/value head; null unless i8.
const float* head_scales(const ConstTensorView& scales, int64_t kv_head);

// The keys or values of a source that belong to one key/value head.
RingRows ring_rows(const ConstTensorView& keys, const ConstTensorView& scales, int64_t kv_head);

// Gathers the queries of tokens [first_token, first_token + tokens) that read one key/value head
// into rows [tokens * group, head_dim], multiplied by the scale.
void gather_queries(const SoftmaxAttentionArgs& args, const AttentionShape& shape, int64_t kv_head,
                    int64_t first_token, int64_t tokens, float* out);

// Starts the softmax of all rows: nothing seen.
void reset(const QueryRows& rows);

// Divides by the sums and writes the rows of tokens from first_token on to args.o.
void write_outputs(const SoftmaxAttentionArgs& args, const AttentionShape& shape, int64_t kv_head,
                   int64_t first_token, const QueryRows& rows);

// Few queries: split over key/value heads and pieces of positions.
void softmax_attention_decode(Context& context, const SoftmaxAttentionArgs& args);
// Many queries: split over key/value heads and tiles of queries.
void softmax_attention_prefill(Context& context, const SoftmaxAttentionArgs& args);

}  // namespace spb::ops
