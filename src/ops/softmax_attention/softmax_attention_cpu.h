// The CPU form of softmax_attention, after its arguments have been checked.
#pragma once

#include "ops/softmax_attention/softmax_attention.h"
#include "ops/softmax_attention/softmax_attention_kernels.h"

namespace spb::ops {

// The sizes of a call, by name.
struct AttentionShape {
  int64_t tokens;
  int64_t kv_heads;
  int64_t group;  // query heads per key/value head
  int64_t head_dim;
  int64_t padded_dim;
  int64_t capacity;
  int64_t window_size;  // never 0: a window that hides nothing when there is none

  explicit AttentionShape(const SoftmaxAttentionArgs& args);
};

const SoftmaxAttentionKernels& softmax_attention_kernels();

// The first position that the token at `position` sees.
inline int64_t first_visible(const AttentionShape& shape, int64_t position) {
  const int64_t first = position - shape.window_size + 1;
  return first > 0 ? first : 0;
}

RingRows ring_rows(const ConstTensorView& cache, const AttentionShape& shape, int64_t kv_head);

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
