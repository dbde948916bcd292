// Built without CUDA: no device is ever found, so nothing here is reached by a careful caller.
#include "core/cuda/cuda.h"
#include "core/error.h"

namespace spb::cuda {
namespace {

constexpr const char* kNotBuilt = "built without CUDA (cmake -DSPB_CUDA=ON)";

[[noreturn]] void not_built() { fail(ErrorKind::kSystem, "cuda: {}", kNotBuilt); }

}  // namespace

int device_count() { return 0; }
std::string unusable_reason(int) { return kNotBuilt; }
DeviceInfo device_info(int) { not_built(); }
std::byte* allocate(int, int64_t) { not_built(); }
void release(int, std::byte*) noexcept {}
void copy_to_device(int, void*, const void*, int64_t) { not_built(); }
void copy_to_host(int, void*, const void*, int64_t) { not_built(); }
void copy_on_device(int, void*, const void*, int64_t) { not_built(); }

Stream::Stream(int) { not_built(); }
Stream::~Stream() = default;
void Stream::copy_to_device(void*, const void*, int64_t) { not_built(); }
void Stream::copy_on_device(void*, const void*, int64_t) { not_built(); }
void Stream::fill_zero(void*, int64_t) { not_built(); }
void Stream::copy_to_host(void*, const void*, int64_t) { not_built(); }
void Stream::synchronize() { not_built(); }

}  // namespace spb::cuda
