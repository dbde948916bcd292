// gated_linear_attention_backward: gradients of gated_linear_attention.
//
// Per key/value head, with S the states of the forward pass and dS_t the gradient with respect to
// S_t (what the outputs from t on, and the final state, make of it):
//   dS_t  = scale * sum over the query heads of q_t^T do_t + diag(exp(g_{t+1})) dS_{t+1}
//   dq_t  = scale * do_t S_t^T          dk_t = v_t dS_t^T          dv_t = k_t dS_t
//   dg_t  = exp(g_t) * rowsum(S_{t-1} . dS_t), 0 where the forward pass has raised g_t to
//           kMinLogDecay
// from dS_L = scale * q_L^T do_L + d_final_state back to d_state = diag(exp(g_1)) dS_1. dk, dv and
// dg are sums over the query heads that read the state. g are the log decays of single tokens, as
// the forward pass takes them.
//
//   name           shape         dtype  access
//   q, k, v, g     as in the forward pass, read; q and k after the feature map
//   state          [Hkv, K, V]   f32    read; the initial one
//   d_o            [L, Hq, V]    f32    read
//   d_final_state  [Hkv, K, V]   f32    read; absent: the final state is not used, all zeros
//   d_q            [L, Hq, K]    f32    overwritten
//   d_k            [L, Hkv, K]   f32    overwritten
//   d_v            [L, Hkv, V]   f32    overwritten
//   d_g            [L, Hkv, K]   f32    overwritten
//   d_state        [Hkv, K, V]   f32    overwritten; absent: not wanted
//
// Everything is contiguous, and what is written overlaps nothing else. On a CUDA device q, k, v,
// d_o, d_q, d_k and d_v may all be bf16, and g may be too; d_g is f32; K and V are at most 128.
// Usage error, one line, for everything else. `sequences` as in the forward pass: `state`,
// `d_final_state` and `d_state` are absent then.
//
// Determinism: no atomics, sums in a fixed order. The bits are the same on every run, for any
// number of threads, and for a sequence alone and in any batch. Tolerance, as shares of the root
// mean square of a gradient: 1e-5 for f32; 5e-3 where products are of bf16. On a CUDA device dg
// comes from the identity
//   dg_t = rowsum(S_n . dS_n) + sum over t <= i <= n of (q_i . dq_i - k_i . dk_i),
// with n the last token of the chunk and the dot products taken channel by channel, so its
// errors are shares of k . dk where that is larger: where decay is next to complete. A token that
// is not a number spoils all gradients that depend on it, and others of its chunk.
//
// Cost: q and d_o twice, d_q once, k and v two or three times, g three or four times, d_k, d_v and
// d_g once. Operations per token, by chunks of 64 on a CUDA device: K V (6 Hq + 6 Hkv) and
// 5 * 64 Hq (K + V) / 2 more; token by token K V (6 Hq + 12 Hkv). Scratch: on a CUDA device two
// states (S and dS) for every 64 tokens and kv head, written twice and read twice; on the CPU one
// for every 32 tokens.
// Where an octet of tokens decays by more than 2^-28 in any channel, its chunk takes the exact
// kernel on a CUDA device, which needs about ten times as long; so does everything that is not bf16
// with K = V = 64 or 128, and a card that has less than 226 KiB of shared memory for K = 128.
// Source: Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training";
// dg by differentiating S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t.
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::ops {

struct GatedLinearAttentionBackwardSequence {
  int64_t tokens = 0;  // may be 0: d_state is d_final_state then
  ConstTensorView state;
  ConstTensorView d_final_state = {};
  TensorView d_state = {};
};

struct GatedLinearAttentionBackwardArgs {
  ConstTensorView q;
  ConstTensorView k;
  ConstTensorView v;
  ConstTensorView g;
  ConstTensorView d_o;
  TensorView d_q;
  TensorView d_k;
  TensorView d_v;
  TensorView d_g;
  ConstTensorView state = {};
  ConstTensorView d_final_state = {};
  TensorView d_state = {};
  float scale = 1.0f;
  // Of a batch; empty: one sequence, with the three above.
  std::span<const GatedLinearAttentionBackwardSequence> sequences = {};
};

void gated_linear_attention_backward(Context& context,
                                     const GatedLinearAttentionBackwardArgs& args);
void gated_linear_attention_backward_reference(const GatedLinearAttentionBackwardArgs& args);

}  // namespace spb::ops
