#include "core/cuda/not_built.h"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {

void moe_logits_cuda(Context&, const MoeLogitsArgs&) { cuda::not_built("moe_logits"); }
void moe_route_cuda(Context&, const MoeRouteArgs&) { cuda::not_built("moe_route"); }
MoePlan moe_plan_cuda(Context&, const MoePlanArgs&, int64_t) { cuda::not_built("moe_plan"); }
void moe_gather_cuda(Context&, const MoeGatherArgs&) { cuda::not_built("moe_gather"); }
void moe_scatter_cuda(Context&, const MoeScatterArgs&) { cuda::not_built("moe_scatter"); }
void grouped_matmul_cuda(Context&, const GroupedMatmulArgs&, bool) {
  cuda::not_built("grouped_matmul");
}

}  // namespace spb::ops
