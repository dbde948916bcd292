// The CPU forms of gated_linear_attention, after its arguments have been checked.
#pragma once

#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::ops {

// Where the chunked form is the faster one (measured). More query heads per state give the
// recurrent form enough to do with every element that it loads, and it does fewer operations.
inline constexpr int64_t kChunkedTokens = 8;
inline constexpr int64_t kChunkedGroup = 2;

// What both passes read of the tokens [first, first + count) of one key/value head.
template <typename Args>
GatedTokens inputs_of(const Args& args, int64_t kv_head, int64_t first, int64_t count) {
  const int64_t kv_heads = args.k.shape()[1];
  const int64_t group = args.q.shape()[1] / kv_heads;
  const int64_t row = first * kv_heads + kv_head;
  const int64_t key_dim = args.k.shape()[2];
  const int64_t value_dim = args.v.shape()[2];
  return {args.q.template row_as<float>(row * group),
          args.k.template row_as<float>(row),
          args.v.template row_as<float>(row),
          args.g.template row_as<float>(row),
          kv_heads * group * key_dim,
          kv_heads * key_dim,
          kv_heads * value_dim,
          kv_heads * group * value_dim,
          count,
          group,
          key_dim,
          value_dim,
          args.scale};
}

// max(x, 0) of a contiguous tensor, in the context's arena.
TensorView rectified(Context& context, const ConstTensorView& x);

void gated_linear_attention_recurrent(Context& context, const GatedLinearAttentionArgs& args);
void gated_linear_attention_chunked(Context& context, const GatedLinearAttentionArgs& args);

}  // namespace spb::ops
