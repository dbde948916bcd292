#include "core/device.h"

#include <charconv>

#include "core/cuda/cuda.h"
#include "core/error.h"

namespace spb {

std::string to_string(const Device& device) {
  return device.is_cuda() ? fmt::format("cuda:{}", device.index) : "cpu";
}

Device first_usable(int count, const std::function<std::string(int)>& unusable_reason) {
  for (int index = 0; index < count; ++index) {
    if (unusable_reason(index).empty()) return {Device::Type::kCuda, index};
  }
  return {};
}

Device parse_device(std::string_view text) {
  if (text == "cpu") return {};
  if (text == "auto") return first_usable(cuda::device_count(), cuda::unusable_reason);
  Device device{Device::Type::kCuda, 0};
  const std::string_view prefix = "cuda:";
  if (text != "cuda") {
    const std::string_view digits =
        text.starts_with(prefix) ? text.substr(prefix.size()) : std::string_view();
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), device.index);
    check(!digits.empty() && error == std::errc() && end == digits.data() + digits.size() &&
              device.index >= 0,
          "device: expected cpu, cuda, cuda:N or auto, got \"{}\"", text);
  }
  const std::string reason = cuda::unusable_reason(device.index);
  check(reason.empty(), "device: {}: {}", to_string(device), reason);
  return device;
}

}  // namespace spb
