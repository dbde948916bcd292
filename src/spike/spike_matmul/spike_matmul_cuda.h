// The CUDA path of spike_matmul; a stub stands in where CUDA is not built. Arguments have been
// checked.
//
// Up to kFewTokens rows of counts are multiplied by a kernel that reads every weight once for eight
// of them, more rows in tiles on the tensor cores. Sums are integers of 32 bits until they become a
// float, once for each group; what they cannot hold is computed in 64.
#pragma once

#include "spike/spike_matmul/spike_gated_matmul.h"
#include "spike/spike_matmul/spike_weight_impl.h"

namespace spb::spike {

void prepare_spike_weight_cuda(Context& context, const SpikeWeightSource& source,
                               const SpikeWeightOptions& options, SpikeWeight::Impl& impl);

// Rows in tiles: by warpgroups where the device has them, or by warps on every device.
enum class TileUnit { kAutomatic, kWarps };

// Usage error for counts of a CPU, for kPlanes, and for kEvents without the channel-major copy.
void spike_matmul_cuda(Context& context, const SpikeMatmulArgs& args,
                       TileUnit unit = TileUnit::kAutomatic);

// False, and nothing done, where the operators one after the other are the way.
bool spike_gated_matmul_fused(Context& context, const SpikeGatedMatmulArgs& args);

}  // namespace spb::spike
