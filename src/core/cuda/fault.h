// Fault: what a kernel found wrong with its data.
//
// Kernels cannot throw. The first that finds something writes it into its stream's Fault, and the
// stream throws a data error when the host next waits for it.
#pragma once

#include <cstdint>

namespace spb::cuda {

enum class FaultKind : int32_t {
  kNone,
  kNotFinite,      // an infinity or NaN where only numbers can be used
  kCountTooLarge,  // a spike count beyond 2^24
};

struct Fault {
  FaultKind kind = FaultKind::kNone;
  int32_t place = 0;  // Stream::place() when the kernel was queued
  int64_t row = 0;
  int64_t column = 0;
};

}  // namespace spb::cuda
