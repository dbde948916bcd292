// Times the search for scales, after comparing it with the plain largest scale: the error must not
// be greater. Weights per second.
#include <benchmark/benchmark.h>

#include <cmath>

#include "core/rng.h"
#include "spike/weights/weight_codes.h"

namespace spb::spike {
namespace {

double squared_error(const Tensor& w, const WeightCodes& q) {
  double sum = 0;
  for (int64_t n = 0; n < w.shape()[0]; ++n) {
    for (int64_t c = 0; c < w.shape()[1]; ++c) {
      const auto code = static_cast<double>(q.codes.view().row_as<int8_t>(n)[c]);
      const auto scale = static_cast<double>(q.scales.view().row_as<float>(n)[c / kScaleGroup]);
      sum += std::pow(static_cast<double>(w.view().row_as<float>(n)[c]) - code * scale, 2);
    }
  }
  return sum;
}

void search(benchmark::State& state) {
  Context context;
  Rng rng(1);
  Tensor w(DType::kF32, Shape{1024, 2048});
  for (int64_t i = 0; i < w.shape().elements(); ++i) w.as<float>()[i] = rng.normal();
  const double found = squared_error(w, search_scales(context, w));
  if (!(found <= squared_error(w, quantize_largest(context, w)) * 1.00001)) {
    state.SkipWithError("the search made the error greater");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(search_scales(context, w).codes.bytes());
  state.SetItemsProcessed(state.iterations() * w.shape().elements());
}
BENCHMARK(search)->UseRealTime();

}  // namespace
}  // namespace spb::spike

BENCHMARK_MAIN();
