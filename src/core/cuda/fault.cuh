// Reporting faults from kernels.
#pragma once

#include "core/cuda/cuda.h"

namespace spb::cuda {

// What a kernel carries to report with.
struct FaultSink {
  Fault* fault;  // host memory
  int32_t place;
};

inline FaultSink fault_sink(const Stream& stream) { return {stream.fault(), stream.place()}; }

// The first report stays; which one that is among several may differ from run to run. The host
// looks when the device is done: atomics need not reach further than that.
__device__ inline void report(const FaultSink& sink, FaultKind kind, int64_t row, int64_t column) {
  auto* word = reinterpret_cast<int*>(&sink.fault->kind);
  if (atomicCAS(word, 0, static_cast<int>(kind)) != 0) return;
  sink.fault->place = sink.place;
  sink.fault->row = row;
  sink.fault->column = column;
  __threadfence_system();
}

}  // namespace spb::cuda
