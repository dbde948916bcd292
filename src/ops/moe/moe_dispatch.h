// The way of the rows of x to their experts and back:
//
//   MoePlan plan = moe_plan(...)       choices -> a row for every choice, grouped by expert
//   moe_gather                         grouped[r] = x[token of r], 0 where r is padding
//   moe_scatter                        y[i] += sum_j probabilities[i, j] * rows[row of (i, j)]
//
// Between gather and scatter the rows of expert e are offsets[e] .. offsets[e + 1]: the form that
// grouped_matmul takes.
//
//   name           shape         dtype  access
//   experts        [N, k]        i32    read; each in 0 .. E - 1
//   probabilities  [N, k]        f32    read
//   x              [N, C]        f32    read
//   grouped        [rows, C]     f32    overwritten
//   rows           [rows, C]     f32    read
//   y              [N, C]        f32    accumulated into
//
// On a CUDA device x and grouped, and rows and y, may be bf16; sums are of f32, rounded once.
//
// Order. Choices are numbered token by token, k to a token; inside an expert they keep this order.
// A segment is padded to a multiple of `align` rows; an empty one stays empty. Padding is in no
// load count.
// Capacity. With a capacity factor f > 0 an expert takes at most ceil(f k N / E) choices, and the
// others are dropped: they have no row and add nothing to y. f is a decimal number: a product that
// is above an integer by rounding alone counts as that integer.
// CUDA. The plan lies on the device, and the host learns none of its numbers: rows() is the most
// there can be, which is exact with align 1 and no capacity; rows behind those of the last expert
// are padding. The plan is the same as on the CPU otherwise. Choices out of range are not refused,
// they have no row and no load. At most 8192 experts.
// Numerics: y in f32, the choices of a token added in their order. The same bits for every
// instruction set and number of threads. x, grouped, rows and y overlap nothing they are used with.
// Cost: plan O(N k + E), gather and scatter read and write every row once per choice.
// Source: Lepikhin et al. 2020, "GShard" (capacity); Gale et al. 2022, "MegaBlocks" (dropless).
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "ops/moe/moe_router.h"

namespace spb::ops {

enum class DropRule {
  kByPosition,     // the first choices stay
  kByProbability,  // the most probable choices stay; of equal ones the first. NaN goes first.
};

struct MoePlanArgs {
  MoeChoices choices;
  int64_t num_experts = 0;
  int64_t align = 1;           // rows, 1 .. 65536
  double capacity_factor = 0;  // 0: dropless
  DropRule drop_rule = DropRule::kByPosition;
};

struct MoePlan {
  int64_t num_tokens = 0;
  int64_t experts_per_token = 0;
  int64_t num_rows = 0;
  std::span<const int64_t> offsets;   // [E + 1], in rows
  std::span<const int64_t> token_of;  // [rows], the token of a row; -1: padding
  std::span<const int64_t> row_of;    // [N k], the row of a choice; -1: dropped
  std::span<const int64_t> assigned;  // [E], choices of an expert, dropped ones included
  std::span<const int64_t> dropped;   // [E]

  int64_t num_experts() const { return static_cast<int64_t>(assigned.size()); }
  int64_t rows() const { return num_rows; }
};

// The plan lies in the context's arena: it is gone when the scope ends in which this was called.
MoePlan moe_plan(Context& context, const MoePlanArgs& args);

struct MoeGatherArgs {
  const MoePlan& plan;
  ConstTensorView x;
  TensorView grouped;
};
void moe_gather(Context& context, const MoeGatherArgs& args);

struct MoeScatterArgs {
  const MoePlan& plan;
  ConstTensorView rows;
  ConstTensorView probabilities;
  TensorView y;
};
void moe_scatter(Context& context, const MoeScatterArgs& args);

// Share of all choices that went to `expert`; 0 when there are none. `assigned` as in a plan, or
// the sum over several.
double load_share(std::span<const int64_t> assigned, int64_t expert);
// Largest load over mean load: 1 when balanced, E when one expert has everything, 0 without
// choices.
double load_imbalance(std::span<const int64_t> assigned);

}  // namespace spb::ops
