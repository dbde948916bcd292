// Context: what every operator needs beside its arguments.
//
// One Context belongs to one thread of control and one device: the tensors that operators are given
// lie there, host spans aside. Operators take scratch memory from its arena and split work over its
// pool, or queue it on its stream; they hold no state of their own. On a CUDA device operators
// return before their work is done; what reads results on the host goes through core/transfer.h.
#pragma once

#include <memory>

#include "core/arena.h"
#include "core/cuda/cuda.h"
#include "core/device.h"
#include "core/thread_pool.h"

namespace spb {

// Most rows of a step that is recorded (Context::advance()).
inline constexpr int64_t kMaxRecordedRows = 256;

class Context {
 public:
  explicit Context(int threads = 0) : Context(Device{}, threads) {}
  explicit Context(const Device& device, int threads = 0)
      : device_(device), pool_(threads), arena_(device) {
    if (device.is_cuda()) stream_ = std::make_unique<cuda::Stream>(device.index);
  }
  Context(const Device& device, int threads, DType activation_dtype) : Context(device, threads) {
    set_activation_dtype(activation_dtype);
  }

  const Device& device() const { return device_; }
  ThreadPool& pool() { return pool_; }
  Arena& arena() { return arena_; }

  // Only on a CUDA device, which becomes current for the calling thread: contexts of several cards
  // can take turns in one thread, and a context can move to another.
  cuda::Stream& stream() {
    stream_->make_current();
    return *stream_;
  }

  // Of the values between operators: f32 on the CPU, bf16 on a CUDA device unless set otherwise.
  DType activation_dtype() const { return activation_dtype_; }
  void set_activation_dtype(DType dtype) {
    check(dtype == DType::kF32 || (dtype == DType::kBF16 && device_.is_cuda()),
          "context: activation dtype: expected f32{}, got {}", device_.is_cuda() ? " or bf16" : "",
          name(dtype));
    activation_dtype_ = dtype;
  }

  // While a step of decoding is being recorded (model/decoder.h): in device memory, by how many
  // positions the sequences will have advanced when it is played. Operators on a CUDA device add it
  // to the positions they are given. nullptr: nothing to add.
  const int64_t* advance() const { return advance_; }
  void set_advance(const int64_t* advance) { advance_ = advance; }

 private:
  Device device_;
  ThreadPool pool_;
  std::unique_ptr<cuda::Stream> stream_;
  Arena arena_;
  const int64_t* advance_ = nullptr;
  DType activation_dtype_ = device_.is_cuda() ? DType::kBF16 : DType::kF32;
};

}  // namespace spb
