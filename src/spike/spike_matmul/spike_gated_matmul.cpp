#include "spike/spike_matmul/spike_gated_matmul.h"

#include "core/error.h"
#include "ops/swiglu/swiglu.h"
#include "spike/spike_matmul/spike_matmul_cuda.h"
#include "spike/spike_matmul/spike_path.h"

namespace spb::spike {

void spike_gated_matmul(Context& context, const SpikeGatedMatmulArgs& args) {
  const SpikeMatmulTarget gate{args.gate, {}, args.y};
  SpikeMatmulTarget up{args.up, {}, args.y};
  check_spike_matmul(context.device(), {args.counts, {&gate, 1}});
  check_spike_matmul(context.device(), {args.counts, {&up, 1}});
  if (context.device().is_cuda() && spike_gated_matmul_fused(context, args)) return;
  const Arena::Scope scope(context.arena());
  up.y = context.arena().tensor(args.y.dtype(), args.y.shape());
  const SpikeMatmulTarget targets[] = {gate, up};
  spike_matmul(context, {args.counts, targets});
  ops::swiglu(context, {gate.y, up.y, gate.y});
}

}  // namespace spb::spike
