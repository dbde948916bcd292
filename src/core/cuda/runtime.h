// Error checks around the CUDA runtime, for core/cuda and *_cuda.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"

namespace spb::cuda {

// System error "cuda: WHAT: ..." unless the call succeeded. The error is taken off the runtime, so
// that a later call does not report it again.
inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();
  fail(ErrorKind::kSystem, "cuda: {}: {}", what, cudaGetErrorString(status));
}

// Makes a device current for this thread, and the one before again at the end.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check_cuda(cudaGetDevice(&before_), "asking for the current device");
    if (device != before_) check_cuda(cudaSetDevice(device), "choosing a device");
  }
  ~DeviceScope() { (void)cudaSetDevice(before_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
};

}  // namespace spb::cuda
