// The products of grouped_matmul that read weights as they are stored, shared by its CUDA files.
#pragma once

#include "core/cuda/pack.cuh"
#include "ops/matmul/matmul_few_rows.cuh"
#include "ops/moe/grouped_matmul.h"

namespace spb::ops {

// All experts' rows, one expert after another.
inline Planes expert_planes(const GroupedMatmulTarget& target) {
  const MatmulWeight::Impl& weight = target.weights[0]->impl();
  check(!weight.in_tiles, "grouped_matmul: expected weights of prepare_expert_weights, got tiles");
  return planes_of(weight);
}

void grouped_matmul_few_rows(Context& context, const GroupedMatmulArgs& args);
// f32 rows, in f32.
void grouped_matmul_float(Context& context, const GroupedMatmulArgs& args,
                          const GroupedMatmulTarget& target);

}  // namespace spb::ops
