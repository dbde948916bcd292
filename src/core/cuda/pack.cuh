// Pack: consecutive elements of a row that one thread reads or writes at once (at most 16 bytes).
#pragma once

#include "core/cuda/launch.cuh"
#include "core/tensor_view.h"

namespace spb::cuda {

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];

  __device__ static Pack load(const T* from) { return *reinterpret_cast<const Pack*>(from); }
  __device__ void store(T* to) const { *reinterpret_cast<Pack*>(to) = *this; }
};

// Elements per access for rows of T: as many as 16 bytes hold.
template <typename T>
inline constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

// Whether every row of `tensor` can be read in packs of `count` elements.
inline bool packs_fit(const ConstTensorView& tensor, int count) {
  const int64_t bytes = block_bytes(tensor.dtype()) * count;
  return reinterpret_cast<uintptr_t>(tensor.data()) % static_cast<uintptr_t>(bytes) == 0 &&
         tensor.row_stride_bytes() % bytes == 0 && tensor.shape().last() % count == 0;
}

// A matrix as kernels take it: rows `stride` elements apart.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;

  __device__ T* row(int64_t index) const { return data + index * stride; }
};

template <typename T>
Rows<T> rows_of(TensorView tensor) {
  return {reinterpret_cast<T*>(tensor.data()),
          tensor.row_stride_bytes() / static_cast<int64_t>(sizeof(T))};
}
template <typename T>
Rows<const T> rows_of(ConstTensorView tensor) {
  return {reinterpret_cast<const T*>(tensor.data()),
          tensor.row_stride_bytes() / static_cast<int64_t>(sizeof(T))};
}

// Calls function(T()) for the type of activations.
template <typename Function>
void with_activation(DType dtype, Function function) {
  if (dtype == DType::kBF16) {
    function(__nv_bfloat16());
  } else {
    function(float());
  }
}

}  // namespace spb::cuda
