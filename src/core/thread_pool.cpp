#include "core/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "core/options.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace spb {
namespace {

// Longer than the serial gaps between the operators of one token, shorter than anyone notices on a
// battery. Measured by the clock: a pause takes 10 to 200 cycles, depending on the processor.
constexpr int64_t kSpinNanoseconds = 100'000;
constexpr int kSpinsPerClockRead = 64;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until ready() holds; false if it does not within `nanoseconds`.
template <typename Ready>
bool spin_until(int64_t nanoseconds, Ready ready) {
  using Clock = std::chrono::steady_clock;
  if (ready()) return true;
  if (nanoseconds <= 0) return false;
  const auto deadline = Clock::now() + std::chrono::nanoseconds(nanoseconds);
  do {
    for (int i = 0; i < kSpinsPerClockRead; ++i) {
      if (ready()) return true;
      pause_cpu();
    }
  } while (Clock::now() < deadline);
  return false;
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
  const auto available = static_cast<int>(processors.size());
  spin_ns_ = available > 0 && threads_ > available ? 0 : kSpinNanoseconds;
  // A smaller team is left to the scheduler: pinned, two processes would meet on one processor.
  const bool pin = threads_ == available && integer_option("SPB_PIN", 0, 1).value_or(1) == 1;
  try {
    for (int thread = 1; thread < threads_; ++thread) {
      const int processor = pin ? processors[static_cast<size_t>(thread)] : -1;
      workers_.emplace_back([this, thread, processor] {
        if (processor >= 0) pin_to(processor);
        worker(thread);
      });
    }
  } catch (const std::system_error& error) {
    const size_t started = workers_.size() + 1;
    stop();
    fail(ErrorKind::kSystem, "starting thread {} of {}: {}", started + 1, threads_, error.what());
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
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
  if (threads_ == 1) return task(context, 0);
  running_.store(threads_ - 1, std::memory_order_relaxed);
  task_ = task;
  context_ = context;
  // Publishes the three above. Sequentially consistent, as are the sleepers' counting themselves
  // and their last look at generation_: either we see the sleeper or it sees the generation.
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) {
    { std::lock_guard lock(mutex_); }  // waits for a worker between its last look and its sleep
    wake_.notify_all();
  }
  call(0);
  wait_for_workers();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::wait_for_workers() {
  const auto done = [&] { return running_.load(std::memory_order_acquire) == 0; };
  if (spin_until(spin_ns_, done)) return;
  while (!done()) std::this_thread::yield();
}

void ThreadPool::wait_for_generation(uint64_t seen) {
  const auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
  if (spin_until(spin_ns_, changed)) return;
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1);
  wake_.wait(lock, [&] { return generation_.load() != seen; });
  sleepers_.fetch_sub(1);
}

void ThreadPool::worker(int thread) {
  // Every worker takes part in every task, and the next is handed out after all have finished: no
  // generation is ever missed.
  for (uint64_t seen = 0;; ++seen) {
    wait_for_generation(seen);
    if (stop_) return;
    call(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace spb
