// moe_logits, moe_route: which experts every token goes to, and with what weight.
//
//   l[i, e]  = sum_c x[i, c] * W[e, c]
//   s[i, e]  = exp(l[i, e]) / sum_f exp(l[i, f])     (softmax)
//            = 1 / (1 + exp(-l[i, e]))               (sigmoid)
//   experts[i, :]       = the k experts of the largest s[i, :], largest first
//   probabilities[i, j] = s[i, experts[i, j]]        (divided by their sum over j if renormalize)
//
//   name           shape   dtype  access
//   x              [N, C]  f32    read; on a CUDA device also bf16
//   W              [E, C]         read, through a MatmulWeight (ops/matmul)
//   logits         [N, E]  f32    written by moe_logits, read by moe_route
//   experts        [N, k]  i32    overwritten; k in 1 .. E
//   probabilities  [N, k]  f32    overwritten
//
// Ties. Both scores grow with the logit, so experts are ordered by their logits: scores that round
// to the same number do not tie. Of equal logits the lower expert comes first.
// Not finite. A NaN is chosen after every number; it makes the softmax scores of its whole row, but
// only its own sigmoid score, NaN. Where the largest logit is infinite, softmax shares 1 equally
// among the experts that have it (the limit of the formula). A chosen expert is always in range.
// If all k scores are 0, renormalising leaves them 0.
//
// Numerics: logits as matmul computes them, but never from a router that was rounded for the sake
// of x: near ties would turn into other choices. Scores in double, rounded once. Tolerance against
// the reference: 1e-6 relative. Scores have the same bits for every instruction set and number of
// threads; the choices are those of every device. Outputs overlap nothing.
// Source: Fedus et al. 2021, "Switch Transformers" (top-k of a softmax, not renormalised).
#pragma once

#include "core/context.h"
#include "core/tensor_view.h"
#include "ops/matmul/matmul.h"

namespace spb::ops {

enum class RouterScore { kSoftmax, kSigmoid };

// A choice is one (token, expert) pair: k of them per token, the most probable first.
struct MoeChoices {
  TensorView experts;
  TensorView probabilities;
};

struct MoeLogitsArgs {
  ConstTensorView x;
  const MatmulWeight& router;
  TensorView logits;
};

void moe_logits(Context& context, const MoeLogitsArgs& args);

struct MoeRouteArgs {
  ConstTensorView logits;
  MoeChoices choices;
  RouterScore score = RouterScore::kSoftmax;
  bool renormalize = false;
};

void moe_route(Context& context, const MoeRouteArgs& args);
void moe_route_reference(const MoeRouteArgs& args);

}  // namespace spb::ops
