// matmul: one input times several weight matrices that are stored row by row.
//
//   y_t[i, n] = sum_k x[i, k] * W_t[n, k] + bias_t[n]        (+ y_t[i, n] when accumulate)
//
//   name   shape     dtype                                    access
//   x      [M, K]    f32                                      read
//   W_t    [N_t, K]  f32, f16, bf16, or any block format      read, through a MatmulWeight
//   bias_t [N_t]     f32                                      read; optional
//   y_t    [M, N_t]  f32                                      overwritten, or added to
//
// The targets share x, so that its conversion is paid once: query, key and value; gate and up.
//
// Numerics, by path (chosen by dtype, M and instruction set; thresholds in matmul.cpp).
//   block formats, few rows     x is rounded to int8 per 32 columns (scale = max|x| / 127); sums of
//                               32 products are exact integers, sums of those f32
//   f32, f16, bf16 weights      f32 products and sums, x as it is
//   tiles: many rows and AMX,   weights (dequantised in f32) and x rounded to bf16, f32 sums;
//   all but f32 weights         subnormal bf16 values count as zero
// Relative to |x| |w| (norms of the rows) errors stay below 1e-2 for int8, 3e-3 for bf16 and 1e-6
// for f32 (matmul_test.cpp). An infinity or NaN in x makes the results of its row infinite or NaN.
// Elements of x below 1e-35 may count as zero in block formats.
// Accumulating, y is rounded once, when the whole sum with its bias is added to it in f32: in f32 y
// becomes float(y + what would be written without accumulate), on every path of the CPU and of few
// rows on CUDA. On a CUDA device x and y may be bf16; there a bf16 sum is not rounded before it is
// added. Of many rows cuBLASLt adds sum, y and bias in its own order.
// A result does not depend on the number of threads, nor on whether the weights were repacked.
// Within one path the rows of x are independent: a row gives the same bits whatever the others are.
//
// Determinism: the same bits on every run with the same instruction set and M.
// Cost: 2 M N K operations; few rows read every byte of the weights once. Accumulating on the CPU
// takes 4 M N_t bytes of scratch.
// Aliasing: y must not overlap x or another y.
// Source: any linear layer; block formats in core/block_formats.h.
#pragma once

#include <memory>
#include <span>

#include "core/context.h"
#include "core/tensor_view.h"

namespace spb::ops {

// A weight matrix in the form the kernels of this machine want. Either refers to the caller's
// memory as it is (a mapped file; the memory must outlive it), or owns a repacked copy.
class MatmulWeight {
 public:
  MatmulWeight();
  ~MatmulWeight();
  MatmulWeight(MatmulWeight&&) noexcept;
  MatmulWeight& operator=(MatmulWeight&&) noexcept;

  bool defined() const { return impl_ != nullptr; }
  int64_t rows() const;      // N
  int64_t columns() const;   // K
  DType dtype() const;       // of the source
  int64_t bytes() const;     // read when every row is used once: for bandwidth figures
  bool owns_memory() const;  // true when a repacked copy was made

  struct Impl;
  Impl& impl() const { return *impl_; }

 private:
  friend MatmulWeight prepare_matmul_weight(Context&, ConstTensorView, bool);
  std::unique_ptr<Impl> impl_;
};

// Prepares `weight` [N, K]. With allow_repack the rows may be copied into an interleaved layout
// that decodes faster; without it nothing is copied (for files larger than memory).
MatmulWeight prepare_matmul_weight(Context& context, ConstTensorView weight,
                                   bool allow_repack = true);

struct MatmulTarget {
  const MatmulWeight* weight = nullptr;
  ConstTensorView bias;  // may be undefined
  TensorView y;
  bool accumulate = false;  // y += instead of y =
};

struct MatmulArgs {
  ConstTensorView x;
  std::span<const MatmulTarget> targets;
};

void matmul(Context& context, const MatmulArgs& args);

// Plain loops in double on the dequantised weights (the source views, as MatmulWeight is opaque).
void matmul_reference(ConstTensorView x, ConstTensorView weight, ConstTensorView bias, TensorView y,
                      bool accumulate = false);

}  // namespace spb::ops
