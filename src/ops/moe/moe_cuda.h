// The CUDA paths of this folder; stubs stand in where CUDA is not built. Arguments were checked.
#pragma once

#include "ops/moe/grouped_matmul.h"
#include "ops/moe/moe_dispatch.h"

namespace spb::ops {

void moe_logits_cuda(Context& context, const MoeLogitsArgs& args);
void moe_route_cuda(Context& context, const MoeRouteArgs& args);

// An expert takes at most `capacity` choices.
MoePlan moe_plan_cuda(Context& context, const MoePlanArgs& args, int64_t capacity);
void moe_gather_cuda(Context& context, const MoeGatherArgs& args);
void moe_scatter_cuda(Context& context, const MoeScatterArgs& args);

// Without `warpgroups` a Hopper card multiplies like those before it.
void grouped_matmul_cuda(Context& context, const GroupedMatmulArgs& args, bool warpgroups = true);

}  // namespace spb::ops
