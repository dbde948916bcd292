// The CUDA runtime as the rest of the program sees it: no CUDA header is needed to include this.
//
// Built without CUDA the same functions exist, find no device, and say which option was off.
// A HIP or MACA build would be a second set of .cpp and .cu files here, of runtime.h and
// launch.cuh. Beside this folder only *_cuda.cu files include the runtime: they hold kernels, and
// two of them ask it for a limit of the device and for memory of the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/cuda/fault.h"

namespace spb::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
  int64_t l2_bytes = 0;
};

// Devices the driver shows; 0 without a driver or without CUDA in the build.
int device_count();

// Empty when device `index` can run the kernels of this build; else what stands in the way
// (core/cuda/usable.h). Throws nothing: a device that cannot be asked is unusable.
std::string unusable_reason(int index);

DeviceInfo device_info(int index);  // system error for a device that cannot be asked

// Zeroed memory of a device, 256-byte aligned; nullptr for 0 bytes. A kSystem error says how much
// was asked for and how much is free.
std::byte* allocate(int device, int64_t bytes);
void release(int device, std::byte* memory) noexcept;

// Copies that wait for all work of the device and are finished on return: for set-up.
void copy_to_device(int device, void* to, const void* from, int64_t bytes);
void copy_to_host(int device, void* to, const void* from, int64_t bytes);
void copy_on_device(int device, void* to, const void* from, int64_t bytes);
void fill_zero(int device, void* to, int64_t bytes);

class Blas;

// Work that a stream recorded, to be queued again with one call.
class Graph {
 public:
  Graph() = default;
  explicit Graph(void* handle) : handle_(handle) {}  // cudaGraphExec_t, owned
  ~Graph();
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept;

  bool defined() const { return handle_ != nullptr; }
  void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

// A queue of work of one device. Everything asked of it happens in order, later than the call.
// Kernels start on the device that is current for the calling thread, so whoever queues something
// makes this one current first; Context::stream() does.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int device() const { return device_; }
  void make_current() const;                // for this thread, until another stream is made current
  void* handle() const { return handle_; }  // cudaStream_t
  // Whether the device is a Hopper and runs code that was built for it (sm_90a).
  bool is_hopper() const { return is_hopper_; }
  int multiprocessors() const { return multiprocessors_; }

  Blas& blas();  // for products queued here; core/cuda/blas.h

  // `from` may be reused on return: it was copied.
  void copy_to_device(void* to, const void* from, int64_t bytes);
  void copy_on_device(void* to, const void* from, int64_t bytes);
  void fill_zero(void* to, int64_t bytes);
  // Waits for all work before it, and reports its errors. A fault that a kernel found in its data
  // is a data error that names the place.
  void copy_to_host(void* to, const void* from, int64_t bytes);
  void synchronize();

  // Records what `queue` asks of this stream instead of doing it. Addresses and arguments are those
  // of the recording, so it may read nothing of the host; and it should have been done once before,
  // so that its memory is there.
  Graph record(const std::function<void()>& queue);
  void launch(const Graph& graph);

  // Where kernels report what is wrong with their data (core/cuda/fault.cuh). They are told the
  // place that is current when they are queued.
  Fault* fault() const { return fault_; }
  int place() const { return place_; }
  void set_place(const std::string& place);

 private:
  void open();
  void close() noexcept;
  void throw_fault();

  int device_ = 0;
  bool is_hopper_ = false;
  int multiprocessors_ = 0;
  void* handle_ = nullptr;
  std::unique_ptr<Blas> blas_;
  Fault* fault_ = nullptr;  // host memory that kernels see
  std::vector<std::string> places_{""};
  int place_ = 0;
};

}  // namespace spb::cuda
