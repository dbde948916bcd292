#include "core/cuda/cuda.h"

#include <algorithm>
#include <new>

#include "core/cuda/blas.h"
#include "core/cuda/kernel_image.h"
#include "core/cuda/runtime.h"
#include "core/cuda/usable.h"

namespace spb::cuda {
namespace {

cudaStream_t cuda_stream(void* handle) { return static_cast<cudaStream_t>(handle); }

// What is known of a device, as far as it can be asked.
void ask(DeviceFacts& facts) {
  check_cuda(cudaGetDeviceCount(&facts.count), "counting devices");
  if (facts.index < 0 || facts.index >= facts.count) return;
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, facts.index), "asking for its properties");
  facts.name = properties.name;
  facts.major = properties.major;
  facts.minor = properties.minor;
  if (facts.major >= kOldestMajor) facts.has_image = has_kernel_image(facts.index);
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
}

std::string unusable_reason(int index) {
  DeviceFacts facts;
  facts.index = index;
  facts.architectures = SPB_CUDA_ARCHITECTURES;
  (void)cudaDriverGetVersion(&facts.driver);
  (void)cudaRuntimeGetVersion(&facts.runtime);
  try {
    ask(facts);
  } catch (const Error& error) {  // a card that others own, or that has no memory left
    facts.error = error.what();
  }
  return unusable_reason(facts);
}

DeviceInfo device_info(int index) {
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, index), "asking for a device's properties");
  DeviceInfo info{properties.name, properties.major, properties.minor,
                  properties.multiProcessorCount};
  const DeviceScope scope(index);
  size_t free = 0;
  size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for free memory");
  info.free_bytes = static_cast<int64_t>(free);
  info.total_bytes = static_cast<int64_t>(total);
  info.l2_bytes = properties.l2CacheSize;
  return info;
}

std::byte* allocate(int device, int64_t bytes) {
  check(bytes >= 0, "cuda: bytes: expected >= 0, got {}", bytes);
  if (bytes == 0) return nullptr;
  const DeviceScope scope(device);
  void* memory = nullptr;
  if (cudaMalloc(&memory, static_cast<size_t>(bytes)) != cudaSuccess) {
    (void)cudaGetLastError();
    const DeviceInfo info = device_info(device);
    fail(ErrorKind::kSystem, "cuda:{}: out of memory: asked for {} MiB, free {} of {} MiB", device,
         (bytes >> 20) + 1, info.free_bytes >> 20, info.total_bytes >> 20);
  }
  try {
    fill_zero(device, memory, bytes);  // before any stream writes there
  } catch (...) {
    (void)cudaFree(memory);
    throw;
  }
  return static_cast<std::byte*>(memory);
}

void release(int, std::byte* memory) noexcept { (void)cudaFree(memory); }

namespace {
void copy(int device, void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
  const DeviceScope scope(device);
  check_cuda(cudaDeviceSynchronize(), "waiting for kernels before copying");
  check_cuda(cudaMemcpy(to, from, static_cast<size_t>(bytes), kind), "copying");
  check_cuda(cudaDeviceSynchronize(), "copying");
}
}  // namespace

void copy_to_device(int device, void* to, const void* from, int64_t bytes) {
  copy(device, to, from, bytes, cudaMemcpyHostToDevice);
}

void copy_to_host(int device, void* to, const void* from, int64_t bytes) {
  copy(device, to, from, bytes, cudaMemcpyDeviceToHost);
}

void copy_on_device(int device, void* to, const void* from, int64_t bytes) {
  copy(device, to, from, bytes, cudaMemcpyDeviceToDevice);
}

void fill_zero(int device, void* to, int64_t bytes) {
  const DeviceScope scope(device);
  check_cuda(cudaDeviceSynchronize(), "waiting for kernels before clearing memory");
  check_cuda(cudaMemset(to, 0, static_cast<size_t>(bytes)), "clearing memory");
  check_cuda(cudaDeviceSynchronize(), "clearing memory");
}

Stream::Stream(int device) : device_(device) {
  try {
    open();
  } catch (...) {
    close();
    throw;
  }
}

void Stream::open() {
  make_current();
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  handle_ = stream;
  const auto ask = [&](int& answer, cudaDeviceAttr attribute) {
    check_cuda(cudaDeviceGetAttribute(&answer, attribute, device_),
               "asking for a device's properties");
  };
  int major = 0;
  ask(major, cudaDevAttrComputeCapabilityMajor);
  ask(multiprocessors_, cudaDevAttrMultiProcessorCount);
  is_hopper_ = SPB_CUDA_SM90A && major == 9;
  void* fault = nullptr;
  check_cuda(cudaHostAlloc(&fault, sizeof(Fault), cudaHostAllocPortable | cudaHostAllocMapped),
             "allocating host memory");
  fault_ = new (fault) Fault;
}

void Stream::close() noexcept {
  if (handle_ != nullptr) (void)cudaStreamDestroy(cuda_stream(handle_));
  if (fault_ != nullptr) (void)cudaFreeHost(fault_);
}

// Asking costs nanoseconds; choosing again would take the runtime's locks.
void Stream::make_current() const {
  int current = 0;
  check_cuda(cudaGetDevice(&current), "asking for the current device");
  if (current != device_) check_cuda(cudaSetDevice(device_), "choosing a device");
}

Blas& Stream::blas() {
  if (!blas_) blas_ = std::make_unique<Blas>(device_);
  return *blas_;
}

Stream::~Stream() { close(); }

// Pageable host memory is staged by the runtime before the call returns.
void Stream::copy_to_device(void* to, const void* from, int64_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                             cuda_stream(handle_)),
             "copying to the device");
}

void Stream::copy_on_device(void* to, const void* from, int64_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                             cuda_stream(handle_)),
             "copying on the device");
}

void Stream::fill_zero(void* to, int64_t bytes) {
  check_cuda(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), cuda_stream(handle_)),
             "clearing memory");
}

void Stream::copy_to_host(void* to, const void* from, int64_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                             cuda_stream(handle_)),
             "copying to the host");
  synchronize();
}

void Stream::synchronize() {
  check_cuda(cudaStreamSynchronize(cuda_stream(handle_)), "running kernels");
  if (fault_->kind != FaultKind::kNone) throw_fault();
}

void Stream::throw_fault() {
  const Fault fault = std::exchange(*fault_, Fault{});
  const std::string& place = places_.at(static_cast<size_t>(fault.place));
  fail(ErrorKind::kData, "{}{}row {}, channel {}: {}", place, place.empty() ? "" : ": ", fault.row,
       fault.column,
       fault.kind == FaultKind::kNotFinite ? "expected a finite number"
                                           : "expected a spike count of at most 2^24");
}

void Stream::set_place(const std::string& place) {
  const auto found = std::find(places_.begin(), places_.end(), place);
  place_ = static_cast<int>(found - places_.begin());
  if (found == places_.end()) places_.push_back(place);
}

Graph Stream::record(const std::function<void()>& queue) {
  check_cuda(cudaStreamBeginCapture(cuda_stream(handle_), cudaStreamCaptureModeRelaxed),
             "recording a graph");
  cudaGraph_t graph = nullptr;
  try {
    queue();
  } catch (...) {
    (void)cudaStreamEndCapture(cuda_stream(handle_), &graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();  // the next launch must not report what is thrown here
    throw;
  }
  check_cuda(cudaStreamEndCapture(cuda_stream(handle_), &graph), "recording a graph");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  (void)cudaGraphDestroy(graph);
  check_cuda(status, "preparing a graph");
  return Graph(exec);
}

void Stream::launch(const Graph& graph) {
  check_cuda(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.handle()), cuda_stream(handle_)),
             "queuing a graph");
}

Graph::~Graph() {
  if (handle_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_));
}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

}  // namespace spb::cuda
