// Blas: dense products of matrices on a CUDA device, by cuBLASLt.
//
// The library is loaded when the first product asks for it: a program built with CUDA starts, and
// runs on the CPU, where it is missing. The kernel of each shape is chosen once and remembered;
// of more than 1024 shapes all are forgotten and chosen anew.
#pragma once

#include <cstdint>
#include <memory>

#include "core/dtype.h"

namespace spb::cuda {

// y [m, n] = x [m, k] * w [n, k]^T + bias [n], or += that; rows `stride` elements apart, device
// memory.
// x, w and y of one dtype, f32 or bf16, or x and w bf16 with y f32; bias of the dtype of y.
struct DenseProduct {
  const void* x = nullptr;
  const void* w = nullptr;
  const void* bias = nullptr;  // nullptr: none
  void* y = nullptr;
  DType dtype = DType::kBF16;  // of x and w
  DType y_dtype = DType::kBF16;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  int64_t x_stride = 0;
  int64_t w_stride = 0;
  int64_t y_stride = 0;
  bool accumulate = false;  // y +=, rounded once
};

class Blas {
 public:
  explicit Blas(int device);  // system error where cuBLASLt cannot be loaded
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  // Sums in f32, never in tf32. System error naming the shape when the library refuses.
  void multiply(void* stream, const DenseProduct& product);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace spb::cuda
