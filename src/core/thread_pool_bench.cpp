#include "core/thread_pool.h"

#include <benchmark/benchmark.h>

#include <chrono>

namespace spb {
namespace {

// The cost of splitting work at all: what a task must save to be worth it.
void empty_parallel_for(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  std::atomic<int64_t> pieces{0};
  pool.parallel_for(1024, 1, [&](int64_t begin, int64_t end, int) { pieces += end - begin; });
  if (pieces != 1024) return state.SkipWithError("pieces are missing");
  for (auto _ : state) {
    pool.parallel_for(1024, 1,
                      [](int64_t begin, int64_t, int) { benchmark::DoNotOptimize(begin); });
  }
}
BENCHMARK(empty_parallel_for)->Arg(1)->Arg(2)->Arg(4)->UseRealTime();

// The same after idle threads have gone to sleep.
void wake_up(benchmark::State& state) {
  ThreadPool pool(2);
  for (auto _ : state) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const auto start = std::chrono::steady_clock::now();
    pool.run([](int thread) { benchmark::DoNotOptimize(thread); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    state.SetIterationTime(seconds.count());
  }
}
BENCHMARK(wake_up)->UseManualTime()->Iterations(200);

}  // namespace
}  // namespace spb

BENCHMARK_MAIN();
