// Device: where tensors lie and operators run.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace spb {

struct Device {
  enum class Type { kCpu, kCuda };

  Type type = Type::kCpu;
  int index = 0;  // among the devices of its type

  bool is_cuda() const { return type == Type::kCuda; }
  friend bool operator==(const Device&, const Device&) = default;
};

std::string to_string(const Device& device);  // "cpu", "cuda:0"

// "cpu", "cuda" (the first), "cuda:N", or "auto": the first usable CUDA device, else the CPU. Usage
// error for other words, and for a CUDA device that is not there or not usable, with the reason:
// not built in, no device, busy, driver too old, card too old, no code for the card in this build.
Device parse_device(std::string_view text);

// The first of `count` CUDA devices for which `unusable_reason` is empty, else the CPU.
Device first_usable(int count, const std::function<std::string(int)>& unusable_reason);

}  // namespace spb
