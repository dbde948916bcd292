// Built without CUDA: no device is ever found, so nothing here is reached by a careful caller.
#include "core/cuda/cuda.h"
#include "core/cuda/not_built.h"

namespace spb::cuda {
int device_count() { return 0; }
std::string unusable_reason(int) { return "built without CUDA (cmake -DSPB_CUDA=ON)"; }
DeviceInfo device_info(int) { not_built("cuda"); }
std::byte* allocate(int, int64_t) { not_built("cuda"); }
void release(int, std::byte*) noexcept {}
void copy_to_device(int, void*, const void*, int64_t) { not_built("cuda"); }
void copy_to_host(int, void*, const void*, int64_t) { not_built("cuda"); }
void copy_on_device(int, void*, const void*, int64_t) { not_built("cuda"); }

void fill_zero(int, void*, int64_t) { not_built("cuda"); }

class Blas {};

Stream::Stream(int) { not_built("cuda"); }
Stream::~Stream() = default;
void Stream::make_current() const { not_built("cuda"); }
Blas& Stream::blas() { not_built("cuda"); }
void Stream::copy_to_device(void*, const void*, int64_t) { not_built("cuda"); }
void Stream::copy_on_device(void*, const void*, int64_t) { not_built("cuda"); }
void Stream::fill_zero(void*, int64_t) { not_built("cuda"); }
void Stream::copy_to_host(void*, const void*, int64_t) { not_built("cuda"); }
void Stream::synchronize() { not_built("cuda"); }
void Stream::set_place(const std::string&) { not_built("cuda"); }
Graph Stream::record(const std::function<void()>&) { not_built("cuda"); }
void Stream::launch(const Graph&) { not_built("cuda"); }
Graph::~Graph() = default;
Graph& Graph::operator=(Graph&&) noexcept = default;

}  // namespace spb::cuda
