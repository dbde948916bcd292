// Asks for a kernel that is compiled for the same architectures as all others.
#include <cuda_runtime.h>

#include "core/cuda/kernel_image.h"
#include "core/cuda/runtime.h"

namespace spb::cuda {
namespace {
__global__ void probe_kernel() {}
}  // namespace

bool has_kernel_image(int device) {
  const DeviceScope scope(device);
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    (void)cudaGetLastError();
    return false;
  }
  check_cuda(status, "looking for kernels");
  return true;
}

}  // namespace spb::cuda
