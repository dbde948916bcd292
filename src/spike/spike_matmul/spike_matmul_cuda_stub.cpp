#include "core/cuda/not_built.h"
#include "spike/spike_matmul/spike_matmul_cuda.h"

namespace spb::spike {

void prepare_spike_weight_cuda(Context&, const SpikeWeightSource&, const SpikeWeightOptions&,
                               SpikeWeight::Impl&) {
  cuda::not_built("spike_matmul");
}
void spike_matmul_cuda(Context&, const SpikeMatmulArgs&, TileUnit) {
  cuda::not_built("spike_matmul");
}
bool spike_gated_matmul_fused(Context&, const SpikeGatedMatmulArgs&) {
  cuda::not_built("spike_gated_matmul");
}

}  // namespace spb::spike
