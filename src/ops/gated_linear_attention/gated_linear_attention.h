// gated_linear_attention: linear attention whose state decays per key channel (GLA).
//
// Per key/value head, with S the recurrent state [K, V] and g the log decay (<= 0):
//   S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t
//   o_t = scale * q_t S_t                       (the decay comes first, the current token is
//   included)
// The Hq / Hkv query heads of a group read the same state; the reference implementation keeps one
// identical copy per query head.
//
//   name   shape         dtype  access
//   q      [L, Hq, K]    f32    read, after the feature map or, with `rectify`, before it
//   k      [L, Hkv, K]   f32    the same
//   v      [L, Hkv, V]   f32    read
//   g      [L, Hkv, K]   f32    read; log decay, clamped from below at kMinLogDecay
//   state  [Hkv, K, V]   f32    initial state, overwritten with the final one
//   o      [L, Hq, V]    f32    overwritten; may be q
//
// On a CUDA device q, k, v and o may all be bf16, and g may be too; K is at most 256 there.
//
// With `rectify` q and k count as max(x, 0), the feature map relu, NaN as NaN: the same bits as
// from tensors that hold these values, without a pass that writes them (on the CPU copies are
// made).
//
// A batch: `sequences` says how the L tokens are cut, one sequence after the other, each with a
// state of its own; `state` is absent then. A sequence gives the same bits alone and in any batch.
//
// States on the way, from which a sequence can be taken up again: with `boundary_interval` n > 0
// the state after every n tokens of a sequence is copied to `boundary_states` [B, Hkv, K, V] f32,
// overwritten, where B is the sum of tokens / n over the sequences, in order. Then the tokens are
// taken n at a time, with the bits of calls for n tokens each; on a CUDA device that costs time
// where n is below some thousands.
//
// Two forms that agree: recurrent (token by token) and chunked: inside a chunk of 32 tokens
// A_ij = scale * sum_c q_ic k_jc exp(G_ic - G_jc) for j <= i with G the inclusive cumulative gate,
// o = scale * (q . exp G) S + A v. Chunks are cut into sub-chunks of 16; the block of a later
// sub-chunk I with an earlier J anchors both factors at the first row of I, so that no exponent is
// ever positive and nothing overflows whatever the gates are. Differences of cumulative gates are
// summed directly over the tokens between, never subtracted: a strong gate would swallow weak ones.
// State and sums are f32; numbers below the smallest normal one may count as 0. Tolerance of both
// forms: 1e-5 of the largest |o|; the states agree to 1e-5 too. A token that is not a number spoils
// itself and what follows, nothing before it. Results do not depend on the number of threads.
//
// On a CUDA device the chunked form is there for bf16 with K = V = 64 or 128; everything else takes
// the recurrent one. It cuts long sequences into segments: the state before each is found first,
// then all segments run at once. Products are of bf16 with f32 sums; gates and states are f32.
// Tolerance: 5e-3 of the root mean square of o and of the state. Sub-chunks whose gates span more
// than a factor 2^28 in 8 tokens are anchored at every power of two instead of at their first row.
// A value that is not a number may spoil the up to 15 tokens before it in its sub-chunk, too.
// Cost: q, o once, k, v, g twice; the recurrent form reads and writes each state once a call.
// Source: Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::ops {

// exp(-88) is the smallest normal float: a stronger decay is already complete forgetting, and the
// floor keeps differences of cumulative gates finite.
inline constexpr float kMinLogDecay = -88.0f;

enum class GatedLinearAttentionForm {
  kAutomatic,  // the faster one: chunked for prompts; on the CPU with at most two query heads a
               // state
  kRecurrent,
  kChunked,
};

struct GatedLinearAttentionSequence {
  int64_t tokens = 0;  // may be 0: its state stays as it is
  TensorView state;
};

struct GatedLinearAttentionArgs {
  ConstTensorView q;
  ConstTensorView k;
  ConstTensorView v;
  ConstTensorView g;
  TensorView state;
  TensorView o;
  float scale = 1.0f;
  GatedLinearAttentionForm form = GatedLinearAttentionForm::kAutomatic;
  // Of a batch; empty: one sequence, with `state`.
  std::span<const GatedLinearAttentionSequence> sequences = {};
  int64_t boundary_interval = 0;  // tokens; 0: no states on the way
  TensorView boundary_states = {};
  bool rectify = false;
};

void gated_linear_attention(Context& context, const GatedLinearAttentionArgs& args);
void gated_linear_attention_reference(const GatedLinearAttentionArgs& args);

enum class FeatureMap {
  kRelu,     // max(x, 0)
  kSigmoid,  // 1 / (1 + exp(-x))
};

std::string_view name(FeatureMap map);  // "relu", "sigmoid"
std::optional<FeatureMap> parse_feature_map(std::string_view name);

// The inputs of a GLA layer from its projections, in place. With a gate of its own:
//   q, k <- feature map;  g <- logsigmoid(g) / gate_logit_normalizer
// With the gate tied to the key (sigmoid only: it must stay a decay), where z is what k holds:
//   q <- feature map;  k <- sigmoid(z);  g <- log(1 - k) = -softplus(z)
// The logarithms are computed without overflow or cancellation for any input: logsigmoid(z) =
// -softplus(-z), and softplus(z) = max(z, 0) + log(1 + exp(-|z|)). Relative tolerance 1e-6 down to
// the smallest normal number, below which results are 0. NaN stays NaN.
//
//   name  shape     dtype  access
//   q     any       f32    overwritten; absent: gated_linear_attention applies the map (`rectify`)
//   k     any       f32    overwritten; absent where q is, and only there; never with a tied gate
//   g     any       f32    overwritten; tied: only written, as [rows, last] of k
struct GatedLinearAttentionInputsArgs {
  TensorView q;
  TensorView k;
  TensorView g;
  float gate_logit_normalizer = 16.0f;  // > 0; a tied gate has none
  FeatureMap feature_map = FeatureMap::kRelu;
  bool tied_gate = false;
};

// Usage error for other dtypes, overlapping memory, q or k alone, a normalizer that is no positive
// number, and a tied gate without q and k, with another map than sigmoid or another shape than k.
void gated_linear_attention_inputs(Context& context, const GatedLinearAttentionInputsArgs& args);

}  // namespace spb::ops
