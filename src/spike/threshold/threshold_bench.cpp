#include <benchmark/benchmark.h>

#include "core/test_tensors.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {
namespace {

// Counts with memory of their own.
struct Counts {
  Counts(int64_t rows, int64_t channels)
      : core(DType::kI8, Shape{rows, channels}), thresholds(DType::kF32, Shape{rows}) {
    out.core = core.view();
    out.thresholds = thresholds.view();
  }
  Tensor core;
  Tensor thresholds;
  SpikeCounts out;
};

// Normal drives with one outlier in 256 that bursts.
void threshold_rows(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const int64_t channels = state.range(1);
  const bool want_active = state.range(2) != 0;
  Rng rng(1);
  test::StridedMatrix x(rows, channels);
  x.fill_normal(rng);
  for (int64_t i = 0; i < rows * channels; i += 256) x.row(i / channels)[i % channels] = 90.0f;
  Context context;
  Counts counts(rows, channels), expected(rows, channels);
  const ThresholdArgs args{x.view(), {}, &counts.out, want_active};
  spike_threshold(context, args);
  spike_threshold_reference({x.view(), {}, &expected.out, want_active});
  if (!test::same_bits(counts.out.core, expected.out.core) ||
      !test::same_bits(counts.out.thresholds, expected.out.thresholds) ||
      counts.out.bursts != expected.out.bursts || counts.out.active != expected.out.active) {
    return state.SkipWithError("differs from the reference");
  }
  for (auto _ : state) spike_threshold(context, args);
  state.SetBytesProcessed(state.iterations() * rows * channels * 5);
}
BENCHMARK(threshold_rows)
    ->Args({1, 3584, 0})
    ->Args({1, 3584, 1})
    ->Args({1, 18944, 0})
    ->Args({1, 18944, 1})
    ->Args({28, 128, 0})
    ->Args({512, 3584, 0})
    ->Args({512, 3584, 1})
    ->UseRealTime();

}  // namespace
}  // namespace spb::spike

BENCHMARK_MAIN();
