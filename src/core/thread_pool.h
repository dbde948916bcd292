// ThreadPool: a fixed team of threads that splits ranges.
//
// Work is short (microseconds) and frequent, so idle threads spin briefly before they sleep.
// Splitting is static: the same range on the same number of threads is always cut the same way,
// which keeps results reproducible. The calling thread takes part. Not re-entrant.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace spb {

class ThreadPool {
 public:
  // threads == 0: SPB_THREADS, else the number of processors the process may use.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(thread) once on every thread of the team, thread in [0, threads()); returns when all
  // are done. The first exception of any thread is rethrown here.
  template <typename Body>
  void run(Body&& body) {
    run_erased([](void* context,
                  int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(thread); },
               const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Calls body(begin, end, thread) on disjoint ranges that cover [0, count). Ranges are multiples
  // of `grain` except the last; a range is never empty; fewer threads work when count is small.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    const int64_t pieces = (count + grain - 1) / grain;
    if (pieces <= 0) return;
    if (pieces == 1 || threads_ == 1) {
      body(int64_t{0}, count, 0);
      return;
    }
    run([&](int thread) {
      const int64_t begin = pieces * thread / threads_ * grain;
      const int64_t end = pieces * (thread + 1) / threads_ * grain;
      if (begin < end) body(begin, end < count ? end : count, thread);
    });
  }

  // Like parallel_for with single pieces taken in order by whichever thread is free: for pieces of
  // unequal cost. body(index, thread).
  template <typename Body>
  void parallel_dynamic(int64_t count, Body&& body) {
    std::atomic<int64_t> next{0};
    run([&](int thread) {
      for (int64_t i = next++; i < count; i = next++) body(i, thread);
    });
  }

 private:
  using Task = void (*)(void* context, int thread);
  void run_erased(Task task, void* context);
  void worker(int thread);
  void call(int thread);
  void wait_for_generation(uint64_t seen);

  int threads_;
  std::vector<std::thread> workers_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> generation_{0};  // counts the tasks handed out
  alignas(64) std::atomic<int> running_{0};          // workers still busy with the current one
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::exception_ptr error_;
};

}  // namespace spb
