// What the tests of CUDA paths share: a device where there is one, and tensors on their way to it
// and back. Not part of the library.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "core/test_tensors.h"
#include "core/transfer.h"
#include "core/widen.h"

namespace spb::test {

// Tests of this fixture are skipped where no CUDA device is usable.
class OnCuda : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    const std::string reason = cuda::unusable_reason(0);
    if (!reason.empty()) GTEST_SKIP() << reason;
    context_ = std::make_unique<Context>(Device{Device::Type::kCuda, 0}, 1);
  }
  Context& context() { return *context_; }

 private:
  std::unique_ptr<Context> context_;
};

// The dtypes of activations, for INSTANTIATE_TEST_SUITE_P.
inline auto activation_dtypes() { return testing::Values(DType::kF32, DType::kBF16); }
inline std::string dtype_name(const testing::TestParamInfo<DType>& dtype) {
  return std::string(name(dtype.param));
}

// Random numbers that bf16 holds exactly, so that both sides of a comparison start alike.
inline Tensor random_tensor(Rng& rng, const Shape& shape, float size = 1.0f) {
  Tensor tensor(DType::kF32, shape);
  for (int64_t i = 0; i < shape.elements(); ++i) {
    tensor.as<float>()[i] = to_float(to_bf16(size * rng.normal()));
  }
  return tensor;
}

// A host tensor of f32 on the device, in another dtype.
inline Tensor put(Context& context, ConstTensorView host, DType dtype = DType::kF32) {
  if (dtype == DType::kF32) return to_device(context, host);
  Tensor rounded(DType::kBF16, host.shape());
  for (int64_t i = 0; i < host.shape().elements(); ++i) {
    rounded.as<bf16>()[i] = to_bf16(host.as<float>()[i]);
  }
  return to_device(context, rounded);
}

// Room on the device, filled with NaN.
inline Tensor poisoned(Context& context, const Shape& shape, DType dtype = DType::kF32) {
  Tensor host(DType::kF32, shape);
  std::fill_n(host.as<float>(), shape.elements(), kPoison);
  return put(context, host, dtype);
}

// What a device tensor holds, as f32.
inline Tensor take(Context& context, ConstTensorView device) {
  Tensor host(device.dtype(), device.shape());
  to_host(context, device, host);
  return widened(host);
}

// ||a - b|| / ||b||; infinity where a is not finite.
inline double relative_error(ConstTensorView a, ConstTensorView b) {
  double difference = 0;
  double size = 1e-30;
  for (int64_t i = 0; i < b.shape().elements(); ++i) {
    const double x = a.as<float>()[i];
    const double y = b.as<float>()[i];
    if (!std::isfinite(x)) return HUGE_VAL;
    difference += (x - y) * (x - y);
    size += y * y;
  }
  return std::sqrt(difference / size);
}

// Of results that were computed in f32 and stored as `dtype`.
inline double tolerance(DType dtype) { return dtype == DType::kF32 ? 2e-6 : 4e-3; }

}  // namespace spb::test
