// Whether a CUDA device can run the kernels of this build, decided from what the runtime told of
// it.
#pragma once

#include <string>

namespace spb::cuda {

// The oldest compute capability whose instructions the kernels use: mma.sync on bf16, cp.async.
inline constexpr int kOldestMajor = 8;

struct DeviceFacts {
  int driver = 0;     // newest CUDA that the driver knows, 13000 for 13.0; 0: no driver
  int runtime = 0;    // the CUDA of this build
  int count = 0;      // devices
  int index = 0;      // of the device in question
  std::string error;  // what the runtime said when asking failed
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  bool has_image = false;     // the build holds machine code that it runs
  std::string architectures;  // that the build holds code for, as CMake names them
};

// Empty when nothing stands in the way; else the first thing that does, and what would help.
std::string unusable_reason(const DeviceFacts& facts);

}  // namespace spb::cuda
