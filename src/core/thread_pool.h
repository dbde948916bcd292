// ThreadPool: a fixed team of threads that splits ranges.
//
// Work is short (microseconds) and frequent, so idle threads spin briefly before they sleep; they
// do not spin when there are more threads than processors. Splitting is static: the same range on
// the same number of threads is always cut the same way, which keeps results reproducible. The
// calling thread takes part. Not re-entrant: one thread at a time hands out work, and bodies hand
// out none.
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
  // threads == 0: SPB_THREADS, else the number of processors the process may use. A team of exactly
  // that many is pinned, one thread to a processor, unless SPB_PIN is 0. kSystem error if the
  // system refuses a thread.
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
  // of `grain` (at least 1) except the last; a range is never empty; fewer threads work when count
  // is small, the calling one always.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) return;
    const int64_t step = grain < 1 ? 1 : grain;
    const int64_t pieces = (count - 1) / step + 1;
    const int64_t team = pieces < threads_ ? pieces : threads_;
    if (team == 1) {
      body(int64_t{0}, count, 0);
      return;
    }
    run([&](int thread) {
      if (thread >= team) return;
      // The first pieces % team threads take one piece more.
      const int64_t share = pieces / team;
      const int64_t more = pieces % team;
      const int64_t first = share * thread + (thread < more ? thread : more);
      const int64_t last = first + share + (thread < more ? 1 : 0);
      body(first * step, last == pieces ? count : last * step, thread);
    });
  }

  // Like parallel_for with single pieces taken in order by whichever thread is free: for pieces of
  // unequal cost. body(index, thread).
  template <typename Body>
  void parallel_dynamic(int64_t count, Body&& body) {
    if (count <= 0) return;
    if (count == 1) {
      body(int64_t{0}, 0);
      return;
    }
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
  void wait_for_workers();
  void stop();

  int threads_;
  int64_t spin_ns_;  // how long an idle thread spins
  std::vector<std::thread> workers_;

  // A worker that spins on generation_ receives the task with the same cache line.
  alignas(64) std::atomic<uint64_t> generation_{0};  // counts the tasks handed out
  Task task_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;  // published by generation_, as the task is

  alignas(64) std::atomic<int> running_{0};  // workers still busy with the current task
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::exception_ptr error_;  // guarded by mutex_ while workers run
};

}  // namespace spb
