#include <benchmark/benchmark.h>

#include "core/test_tensors.h"
#include "spike/statistics/statistics.h"

namespace spb::spike {
namespace {

void add_rows(benchmark::State& state) {
  const Shape shape{state.range(0), state.range(1)};
  Rng rng(1);
  Tensor core(DType::kI8, shape);
  int64_t silent = 0;
  for (int64_t i = 0; i < shape.elements(); ++i) {
    core.as<int8_t>()[i] = static_cast<int8_t>(rng.normal() * 3.0f);
    silent += core.as<int8_t>()[i] == 0;
  }
  SpikeCounts counts;
  counts.core = core.view();
  Context context;
  SpikeStatistics statistics;
  statistics.add(context, counts);
  if (statistics.silent() != silent) return state.SkipWithError("counts another number of zeros");
  for (auto _ : state) statistics.add(context, counts);
  state.SetItemsProcessed(state.iterations() * shape.elements());
}
BENCHMARK(add_rows)->Args({1, 3584})->Args({1, 18944})->Args({512, 3584})->UseRealTime();

}  // namespace
}  // namespace spb::spike

BENCHMARK_MAIN();
