// Speed of gated_linear_attention: bytes of state moved per second for single tokens, useful
// multiplications and additions per second for prompts (those of the recurrence, whatever form
// runs: 3 per element of the state, and 2 per element and query head).
//
// Arguments: tokens, query heads, kv heads, key_dim = value_dim, gates: 0 for weak ones of their
// own, else tied ones of projections up to that magnitude.
#include "ops/gated_linear_attention/gated_linear_attention.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>

#include "core/buffer.h"
#include "core/rng.h"

namespace spb::ops {
namespace {

struct Problem {
  Tensor q, k, v, g, state, o;
  GatedLinearAttentionArgs args;

  Problem(Context& context, const benchmark::State& run, GatedLinearAttentionForm form) {
    const int64_t tokens = run.range(0);
    const int64_t heads = run.range(1);
    const int64_t kv_heads = run.range(2);
    const int64_t dim = run.range(3);
    q = Tensor(DType::kF32, Shape{tokens, heads, dim});
    k = Tensor(DType::kF32, Shape{tokens, kv_heads, dim});
    v = Tensor(DType::kF32, k.shape());
    g = Tensor(DType::kF32, k.shape());
    state = Tensor(DType::kF32, Shape{kv_heads, dim, dim});
    o = Tensor(DType::kF32, q.shape());
    Rng rng(1);
    const auto fill = [&](Tensor& tensor, float low, float high) {
      std::generate_n(tensor.as<float>(), tensor.shape().elements(),
                      [&] { return rng.uniform(low, high); });
    };
    fill(q, 0, 1);
    fill(k, 0, 1);
    fill(v, -1, 1);
    fill(g, -0.1f, 0);
    if (run.range(4) > 0) {
      const auto magnitude = static_cast<float>(run.range(4));
      fill(k, -magnitude, magnitude);
      gated_linear_attention_inputs(context, {q, k, g, 16.0f, FeatureMap::kSigmoid, true});
    }
    fill(state, -1, 1);
    args = {q, k, v, g, state, o, 1.0f / std::sqrt(static_cast<float>(dim)), form};
  }

  bool verify(Context& context) {
    Tensor expected(DType::kF32, o.shape());
    Tensor expected_state(DType::kF32, state.shape());
    std::copy_n(state.as<float>(), state.shape().elements(), expected_state.as<float>());
    GatedLinearAttentionArgs reference = args;
    reference.o = expected;
    reference.state = expected_state;
    gated_linear_attention_reference(reference);
    gated_linear_attention(context, args);
    return close(o, expected) && close(state, expected_state);
  }

  static bool close(const Tensor& got, const Tensor& expected) {
    float largest = 0;
    float difference = 0;
    for (int64_t i = 0; i < got.shape().elements(); ++i) {
      largest = std::max(largest, std::fabs(expected.as<float>()[i]));
      difference = std::max(difference, std::fabs(expected.as<float>()[i] - got.as<float>()[i]));
    }
    return difference <= 1e-5f * largest;
  }
};

void measure(benchmark::State& run, GatedLinearAttentionForm form) {
  Context context;
  Problem problem(context, run, form);
  if (!problem.verify(context)) return run.SkipWithError("differs from the reference");
  for (auto _ : run) gated_linear_attention(context, problem.args);
  const auto state_elements = static_cast<double>(problem.state.shape().elements());
  const auto group = static_cast<double>(run.range(1) / run.range(2));
  const auto token_steps =
      static_cast<double>(run.range(0)) * static_cast<double>(run.iterations());
  run.counters["FLOP/s"] = benchmark::Counter(state_elements * (3 + 2 * group) * token_steps,
                                              benchmark::Counter::kIsRate);
  if (run.range(0) == 1) {
    run.counters["B/s"] =
        benchmark::Counter(state_elements * 8 * token_steps, benchmark::Counter::kIsRate);
  }
}

void recurrent(benchmark::State& run) { measure(run, GatedLinearAttentionForm::kRecurrent); }
void chunked(benchmark::State& run) { measure(run, GatedLinearAttentionForm::kChunked); }

// SpikingBrain-7B: 28 query heads, 4 kv heads, 128. SpikingBrain-1B: 32, 8, 64.
void shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t tokens : {1, 8, 16, 32, 64, 512}) {
    bench->Args({tokens, 28, 4, 128, 0});
    bench->Args({tokens, 32, 8, 64, 0});
    bench->Args({tokens, 8, 8, 128, 0});
  }
  for (const int64_t magnitude : {2, 10, 100}) {
    bench->Args({1, 28, 4, 128, magnitude});
    bench->Args({512, 28, 4, 128, magnitude});
    bench->Args({512, 8, 8, 128, magnitude});
  }
  bench->UseRealTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK(recurrent)->Name("gated_linear_attention/recurrent")->Apply(shapes);
BENCHMARK(chunked)->Name("gated_linear_attention/chunked")->Apply(shapes);

}  // namespace
}  // namespace spb::ops

BENCHMARK_MAIN();
