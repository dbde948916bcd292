// What stubs say where an operator has no CUDA code in this build.
#pragma once

#include "core/error.h"

namespace spb::cuda {

[[noreturn]] inline void not_built(const char* operation) {
  fail(ErrorKind::kSystem, "{}: built without CUDA (cmake -DSPB_CUDA=ON)", operation);
}

}  // namespace spb::cuda
