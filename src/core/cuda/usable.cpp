#include "core/cuda/usable.h"

#include <fmt/format.h>

namespace spb::cuda {

std::string unusable_reason(const DeviceFacts& facts) {
  if (facts.driver == 0) return "no CUDA driver is loaded";
  if (facts.driver / 1000 < facts.runtime / 1000) {
    return fmt::format("driver too old: expected CUDA {}, got {}.{}", facts.runtime / 1000,
                       facts.driver / 1000, facts.driver % 1000 / 10);
  }
  if (!facts.error.empty()) return facts.error;
  if (facts.index < 0 || facts.index >= facts.count) {
    return fmt::format("no such device: expected an index below {}", facts.count);
  }
  const std::string card =
      fmt::format("{} of compute capability {}.{}", facts.name, facts.major, facts.minor);
  if (facts.major < kOldestMajor) {
    return fmt::format("card too old: expected compute capability {}.0 or newer, got {}",
                       kOldestMajor, card);
  }
  if (facts.has_image) return "";
  return fmt::format(
      "no code for this card: expected one of {}, which this build is for, got {} "
      "(cmake -DCMAKE_CUDA_ARCHITECTURES={}{}-real)",
      facts.architectures, card, facts.major, facts.minor);
}

}  // namespace spb::cuda
