#include "spike/int8_rows/int8_rows_cuda.h"

#include "core/cuda/fault.cuh"
#include "core/cuda/pack.cuh"
#include "core/cuda/reduce.cuh"
#include "core/int8_row.h"

namespace spb::spike {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;

// int8_code of core/int8_row.h: adding the shifter leaves no bits for a fraction.
__device__ float code_of(float x, float scale) {
  constexpr float kShifter = 12582912.0f;  // 1.5 * 2^23
  const float clamped = fminf(fmaxf(__fdiv_rn(x, scale), -128.0f), 127.0f);
  return __fadd_rn(__fadd_rn(clamped, kShifter), -kShifter);
}

// A warp rounds one row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    int8_rows_kernel(cuda::Rows<T> x, int64_t rows, int64_t columns, cuda::FaultSink faults) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / cuda::kWarpSize;
  if (n >= rows) return;
  T* row = x.row(n);
  float largest = 0;
  for (int64_t c = lane; c < columns; c += cuda::kWarpSize) {
    const float value = fabsf(cuda::to_float(row[c]));
    if (!isfinite(value)) cuda::report(faults, cuda::FaultKind::kNotFinite, n, c);
    largest = fmaxf(largest, value);
  }
  const float scale = fminf(fmaxf(__fdiv_rn(cuda::warp_max(largest), 127.0f), kSmallestInt8Scale),
                            kLargestInt8Scale);
  for (int64_t c = lane; c < columns; c += cuda::kWarpSize) {
    row[c] = cuda::from_float<T>(__fmul_rn(code_of(cuda::to_float(row[c]), scale), scale));
  }
}

}  // namespace

void int8_rows_cuda(Context& context, TensorView x) {
  const int64_t rows = x.shape().rows();
  if (x.shape().elements() == 0) return;
  cuda::with_activation(x.dtype(), [&](auto type) {
    using T = decltype(type);
    int8_rows_kernel<T><<<static_cast<unsigned>(cuda::ceil_divide(rows, kWarps)), kThreads, 0,
                          cuda::stream_of(context)>>>(cuda::rows_of<T>(x), rows, x.shape().last(),
                                                      cuda::fault_sink(context.stream()));
  });
  cuda::check_launch("int8_rows");
}

}  // namespace spb::spike
