#include <benchmark/benchmark.h>

#include "core/test_tensors.h"
#include "ops/rms_norm/rms_norm.h"

namespace spb::ops {
namespace {

void rms_norm_with_residual(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const int64_t columns = state.range(1);
  Rng rng(1);
  test::StridedMatrix x(rows, columns), residual(rows, columns), weight(1, columns);
  const test::StridedMatrix y(rows, columns), expected(rows, columns);
  x.fill_normal(rng);
  residual.fill_normal(rng, 0.0f);
  weight.fill_normal(rng);
  Context context;
  RmsNormArgs args{x.view(), residual.view(), weight.view().reshaped(Shape{columns}), y.view()};
  rms_norm(context, args);
  const test::StridedMatrix zero = residual.clone().fill_normal(rng, 0.0f).clone();
  RmsNormArgs reference = args;
  reference.residual = zero.view();
  reference.y = expected.view();
  rms_norm_reference(reference);
  if (test::largest_row_error(y.view(), expected.view()) > 2e-6) {
    return state.SkipWithError("differs from the reference");
  }
  x.fill_normal(rng, 0.0f);  // the residual must not grow from one iteration to the next
  for (auto _ : state) rms_norm(context, args);
  state.SetBytesProcessed(state.iterations() * rows * columns * 16);
}
BENCHMARK(rms_norm_with_residual)
    ->Args({1, 576})
    ->Args({1, 4096})
    ->Args({128, 576})
    ->Args({512, 4096})
    ->UseRealTime();

}  // namespace
}  // namespace spb::ops

BENCHMARK_MAIN();
