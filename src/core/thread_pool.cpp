#include "core/thread_pool.h"

#include <algorithm>
#include <utility>

#include "core/options.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace spb {
namespace {

// About 50 microseconds: longer than the serial gaps between the operators of one token, shorter
// than anyone notices on a battery.
constexpr int kSpins = 20000;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

#if defined(__linux__)

std::vector<int> available_processors() {
  cpu_set_t set;
  std::vector<int> processors;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return processors;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) processors.push_back(cpu);
  }
  return processors;
}

void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // a hint: failure is harmless
}

#else

std::vector<int> available_processors() { return {}; }
void pin_to(int) {}

#endif

int default_threads() {
  if (const auto wanted = integer_option("SPB_THREADS", 1, 1024)) return *wanted;
  const int available = static_cast<int>(available_processors().size());
  return std::max(
      1, available > 0 ? available : static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads > 0 ? threads : default_threads()) {
  const std::vector<int> processors = available_processors();
  const bool pin = integer_option("SPB_PIN", 0, 1).value_or(1) == 1 &&
                   threads_ <= static_cast<int>(processors.size());
  for (int thread = 1; thread < threads_; ++thread) {
    workers_.emplace_back([this, thread, pin, processors] {
      if (pin) pin_to(processors[static_cast<size_t>(thread)]);
      worker(thread);
    });
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  {
    std::lock_guard lock(mutex_);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::call(int thread) {
  try {
    task_(context_, thread);
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::run_erased(Task task, void* context) {
  task_ = task;
  context_ = context;
  running_.store(threads_ - 1);
  generation_.fetch_add(1);  // publishes task_ and context_
  if (sleepers_.load() > 0) {
    { std::lock_guard lock(mutex_); }  // a worker about to sleep has now either seen or will wait
    wake_.notify_all();
  }
  call(0);
  for (int spins = 0; running_.load(std::memory_order_acquire) > 0; ++spins) {
    if (spins < kSpins) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::wait_for_generation(uint64_t seen) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (generation_.load(std::memory_order_acquire) != seen) return;
    pause_cpu();
  }
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1);
  wake_.wait(lock, [&] { return generation_.load() != seen; });
  sleepers_.fetch_sub(1);
}

void ThreadPool::worker(int thread) {
  uint64_t seen = 0;
  while (true) {
    wait_for_generation(seen);
    if (stop_.load()) return;
    ++seen;
    call(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace spb
