#include <benchmark/benchmark.h>

#include "core/test_tensors.h"
#include "ops/swiglu/swiglu.h"

namespace spb::ops {
namespace {

void swiglu_rows(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const int64_t columns = state.range(1);
  Rng rng(1);
  test::StridedMatrix gate(rows, columns), up(rows, columns);
  const test::StridedMatrix y(rows, columns), expected(rows, columns);
  gate.fill_normal(rng, 4.0f);
  up.fill_normal(rng);
  Context context;
  const SwigluArgs args{gate.view(), up.view(), y.view()};
  swiglu(context, args);
  swiglu_reference({gate.view(), up.view(), expected.view()});
  if (test::largest_row_error(y.view(), expected.view()) > 1e-6) {
    return state.SkipWithError("differs from the reference");
  }
  for (auto _ : state) swiglu(context, args);
  state.SetBytesProcessed(state.iterations() * rows * columns * 12);
}
BENCHMARK(swiglu_rows)
    ->Args({1, 1536})
    ->Args({1, 18944})
    ->Args({128, 1536})
    ->Args({128, 18944})
    ->UseRealTime();

}  // namespace
}  // namespace spb::ops

BENCHMARK_MAIN();
