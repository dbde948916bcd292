// embedding: one row of a table for each token id.
//
//   y[i, c] = table[ids[i], c]
//
//   name   shape   dtype                     access
//   ids    [N]     i32                       read; each in [0, V), else a usage error naming it
//   table  [V, C]  f32, f16, bf16 or blocks  read; only the rows asked for are touched
//   y      [N, C]  f32                       overwritten
//
// `ids` may lie on a CUDA device instead of the host; they are not checked then.
// On a CUDA device y may be bf16, and of the blocks q8_0, q4_0 and q4_1 are read.
// Exact: the dequantised values, bit for bit.
// Source: the token embedding of every Transformer.
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::ops {

struct EmbeddingArgs {
  std::span<const int32_t> ids;
  ConstTensorView table;
  TensorView y;
  bool ids_on_device = false;
};

void embedding(Context& context, const EmbeddingArgs& args);
void embedding_reference(const EmbeddingArgs& args);

}  // namespace spb::ops
