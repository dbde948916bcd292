#include <benchmark/benchmark.h>

#include <vector>

#include "core/test_tensors.h"
#include "ops/rope/rope.h"

namespace spb::ops {
namespace {

void rope_tokens(benchmark::State& state, RopePairs pairs) {
  const int64_t tokens = state.range(0);
  const int64_t heads = state.range(1);
  const int64_t dim = state.range(2);
  Rng rng(1);
  test::StridedMatrix x(tokens * heads, dim);
  x.fill_normal(rng);
  const test::StridedMatrix expected = x.clone();
  std::vector<int64_t> positions(static_cast<size_t>(tokens));
  for (int64_t& position : positions) position = rng.below(100000);
  Context context;
  const Shape shape{tokens, heads, dim};
  const RopeArgs args{
      .x = x.view().reshaped(shape), .positions = positions, .factors = {}, .pairs = pairs};
  RopeArgs reference = args;
  reference.x = expected.view().reshaped(shape);
  rope(context, args);
  rope_reference(reference);
  if (test::largest_row_error(x.view(), expected.view()) > 1e-6) {
    return state.SkipWithError("differs from the reference");
  }
  for (auto _ : state) rope(context, args);
  state.SetBytesProcessed(state.iterations() * tokens * heads * dim * 8);
}
BENCHMARK_CAPTURE(rope_tokens, half, RopePairs::kHalf)
    ->Args({1, 9, 64})
    ->Args({1, 32, 128})
    ->Args({512, 32, 128})
    ->UseRealTime();
BENCHMARK_CAPTURE(rope_tokens, interleaved, RopePairs::kInterleaved)
    ->Args({1, 9, 64})
    ->Args({512, 32, 128})
    ->UseRealTime();

}  // namespace
}  // namespace spb::ops

BENCHMARK_MAIN();
