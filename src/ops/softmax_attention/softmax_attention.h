// softmax_attention: causal grouped-query attention over a key/value cache, full or windowed, and
// over sink tokens.
//
// The L queries of one sequence stand at positions p = first_position + i. Key position j is
// visible to p when max(0, p - window_size + 1) <= j <= p; window_size counts the current token, 0
// means no window. Sink tokens have no position: each of the S is visible to every query, whatever
// the window. Hq query heads share Hkv key/value heads: query head h reads head h / (Hq / Hkv).
//
//   s_j    = scale * <q[i, h], key(j)>                     j: the sinks and the visible positions
//   o[i,h] = sum_j softmax_j(s_j) value(j)
//
//   name               shape        dtype               access
//   q                  [L, Hq, D]   f32                 read
//   keys               [Hkv, C, D]  f32, f16, bf16, i8  read; position j lives in slot j mod C
//   values             [Hkv, C, D]  as keys             read
//   o                  [L, Hq, D]   f32                 overwritten; may be q
//   sink_keys          [Hkv, S, D]  as keys             read; undefined: no sinks
//   sink_values        [Hkv, S, D]  as keys             read
//   key_scales         [Hkv, C]     f32                 read; with i8 only
//   value_scales       [Hkv, C]     f32                 read; with i8 only
//   sink_key_scales    [Hkv, S]     f32                 read; with i8 only
//   sink_value_scales  [Hkv, S]     f32                 read; with i8 only
//
// With i8, a key or value is its scale times its codes (core/int8_row.h). Scales that a query sees
// are numbers from 1e-5 to 1e4, as append_to_cache writes them.
//
// The cache already holds the keys and values of positions up to first_position + L - 1 (see
// append_to_cache), and has room for all visible ones: C >= window_size + L - 1 with a window (or
// C >= first_position + L), C >= first_position + L without. Where keys and values are undefined,
// every query sees the sinks and nothing else: so sink tokens attend to each other, without a
// causal mask. There are no positions then, and first_position and window_size must be 0.
// On a CUDA device q, o, k and v may be bf16, and head_dim is 32, 64 or 128; scales are not looked
// at, and what append_to_cache gets that is not finite becomes some code.
// A batch: `sequences` says how the L tokens are cut, one sequence after the other, each with a
// cache and positions of its own; those of the arguments are absent then. Sinks are the same for
// all. A sequence gives the same bits alone and in any batch. Softmax subtracts the running
// maximum; sums in f32. Tolerance against the reference: 1e-5 of the largest |value|; 2e-3 where
// the processor multiplies bf16 tiles (L >= 32 and a cache other than f32), which round the softmax
// weights to bf16. Keys that no query sees are never read; a value that is not a number spoils the
// queries that see it (in a sink: all of them) and no other one. Results do not depend on the
// number of threads.
// On a CUDA device the tolerance is a share of the root mean square of o: 2e-6 where q is f32, 6e-3
// where it is bf16 (softmax weights, o and, from 32 queries on, keys and values are rounded to
// bf16). There, for 32 bf16 queries or more with head_dim 64 or 128, whole tiles of 128 slots are
// read, those that were never written included, and a value that is not a number may spoil all
// queries that share a tile with one that sees it: what a cache held before must be cleared.
// Cost: 4 D operations per query head and visible key; with one token it is the bytes of the
// visible keys and values, D + 4 each with i8. Source: Vaswani et al. 2017; Ainslie et al. 2023
// (grouped queries); Dao 2022 (online softmax); Xiao et al. 2023 (sinks).
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::ops {

// One sequence of a batch.
struct CachedSequence {
  int64_t tokens = 0;
  TensorView keys;
  TensorView values;
  int64_t first_position = 0;
  TensorView key_scales = {};  // with i8 only
  TensorView value_scales = {};
};

struct SoftmaxAttentionArgs {
  ConstTensorView q;
  ConstTensorView keys;
  ConstTensorView values;
  TensorView o;
  int64_t first_position = 0;
  int64_t window_size = 0;  // 0: full attention
  float scale = 1.0f;
  ConstTensorView sink_keys = {};  // undefined: no sinks
  ConstTensorView sink_values = {};
  ConstTensorView key_scales = {};  // with i8 only
  ConstTensorView value_scales = {};
  ConstTensorView sink_key_scales = {};
  ConstTensorView sink_value_scales = {};
  // Of a batch; empty: one sequence, with the cache and position above.
  std::span<const CachedSequence> sequences = {};
};

// Usage error for wrong shapes or dtypes, overlapping memory, query heads that are no multiple of
// the key/value heads, a cache too small for the visible positions, a negative position or window,
// a position or window without a cache, scales that are missing or without i8, and where there is
// nothing to see. Data error naming head and slot of a visible scale out of range. Nothing is
// written then.
void softmax_attention(Context& context, const SoftmaxAttentionArgs& args);
void softmax_attention_reference(const SoftmaxAttentionArgs& args);

// Writes rows k[i], v[i] ([L, Hkv, D], f32) as positions first_position + i into the cache,
// rounding to its dtype. With i8 every head of a position gets codes and scales of its own, and
// numbers that are not finite are a data error naming the row (token * Hkv + head) and column;
// other positions are untouched by it.
struct AppendToCacheArgs {
  ConstTensorView k;
  ConstTensorView v;
  TensorView keys;
  TensorView values;
  int64_t first_position = 0;
  TensorView key_scales = {};  // [Hkv, C] f32, with i8 only
  TensorView value_scales = {};
  // Of a batch, as in softmax_attention; the cache and position above are absent then.
  std::span<const CachedSequence> sequences = {};
};

void append_to_cache(Context& context, const AppendToCacheArgs& args);

}  // namespace spb::ops
