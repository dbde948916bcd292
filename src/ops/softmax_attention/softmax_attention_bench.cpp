// Speed of softmax_attention: bytes of cache per second when decoding, multiplications and
// additions of visible pairs per second when processing a prompt.
//
// Arguments: tokens, query heads, kv heads, head_dim, context before the tokens, window, dtype,
// sinks.
#include "ops/softmax_attention/softmax_attention.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/buffer.h"
#include "core/rng.h"

namespace spb::ops {
namespace {

struct Problem {
  Tensor q, k, v, keys, values, o, sink_keys, sink_values;
  SoftmaxAttentionArgs args;
  double pairs = 0;  // of query and visible key

  Problem(Context& context, const benchmark::State& state) {
    const int64_t tokens = state.range(0);
    const int64_t heads = state.range(1);
    const int64_t kv_heads = state.range(2);
    const int64_t head_dim = state.range(3);
    const int64_t before = state.range(4);
    const int64_t window = state.range(5);
    const int64_t capacity =
        window > 0 ? std::min(before + tokens, window + tokens - 1) : before + tokens;
    const Shape cache{kv_heads, capacity, head_dim};
    q = Tensor(DType::kF32, Shape{tokens, heads, head_dim});
    o = Tensor(DType::kF32, q.shape());
    keys = Tensor(static_cast<DType>(state.range(6)), cache);
    values = Tensor(keys.dtype(), cache);
    Rng rng(1);
    const auto fill = [&](Tensor& tensor) {
      std::generate_n(tensor.as<float>(), tensor.shape().elements(),
                      [&] { return rng.uniform(-1.5f, 1.5f); });
    };
    fill(q);
    for (int64_t position = 0; position < before + tokens;) {
      const int64_t count = std::min<int64_t>({before + tokens - position, capacity, 1024});
      k = Tensor(DType::kF32, Shape{count, kv_heads, head_dim});
      v = Tensor(DType::kF32, k.shape());
      fill(k);
      fill(v);
      append_to_cache(context, {k, v, keys, values, position});
      position += count;
    }
    args = {q, keys, values, o, before, window, 1.0f / std::sqrt(static_cast<float>(head_dim))};
    const int64_t sinks = state.range(7);
    if (sinks > 0) {
      k = Tensor(DType::kF32, Shape{sinks, kv_heads, head_dim});
      v = Tensor(DType::kF32, k.shape());
      fill(k);
      fill(v);
      sink_keys = Tensor(keys.dtype(), Shape{kv_heads, sinks, head_dim});
      sink_values = Tensor(keys.dtype(), sink_keys.shape());
      append_to_cache(context, {k, v, sink_keys, sink_values, 0});
      args.sink_keys = sink_keys;
      args.sink_values = sink_values;
    }
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t seen = before + i + 1;
      pairs += static_cast<double>(heads * (sinks + (window > 0 ? std::min(window, seen) : seen)));
    }
  }

  // Compares some tokens: the reference of a whole prompt takes minutes.
  bool verify(Context& context) {
    softmax_attention(context, args);
    const int64_t tokens = q.shape()[0];
    const int64_t width = q.shape()[1] * q.shape()[2];
    Tensor row(DType::kF32, Shape{1, q.shape()[1], q.shape()[2]});
    for (const int64_t token : {int64_t{0}, tokens / 2, tokens - 1}) {
      SoftmaxAttentionArgs one = args;
      one.q = ConstTensorView(q.as<float>() + token * width, row.shape());
      one.o = row;
      one.first_position += token;
      softmax_attention_reference(one);
      for (int64_t i = 0; i < width; ++i) {
        const float difference = row.as<float>()[i] - o.as<float>()[token * width + i];
        if (!(std::fabs(difference) < 3e-3f)) return false;
      }
    }
    return true;
  }
};

void attend(benchmark::State& state) {
  Context context;
  Problem problem(context, state);
  if (!problem.verify(context)) return state.SkipWithError("differs from the reference");
  for (auto _ : state) softmax_attention(context, problem.args);
  const double iterations = static_cast<double>(state.iterations());
  const double head_dim = static_cast<double>(state.range(3));
  state.counters["FLOP/s"] =
      benchmark::Counter(4 * head_dim * problem.pairs * iterations, benchmark::Counter::kIsRate);
  if (state.range(0) == 1) {
    const double group = static_cast<double>(state.range(1) / state.range(2));
    const double bytes = 2 * head_dim * problem.pairs / group *
                         static_cast<double>(block_bytes(problem.keys.dtype()));
    state.counters["B/s"] = benchmark::Counter(bytes * iterations, benchmark::Counter::kIsRate);
  }
}

constexpr int kF32 = static_cast<int>(DType::kF32);
constexpr int kF16 = static_cast<int>(DType::kF16);
constexpr int kBF16 = static_cast<int>(DType::kBF16);

// SmolLM2-135M: 9 query heads, 3 kv heads, head_dim 64. SpikingBrain-7B: 28, 4, 128, window 4096.
// SpikingBrain-1B: 32, 8, 64.
BENCHMARK(attend)
    ->Name("softmax_attention/decode")
    ->Args({1, 9, 3, 64, 1000, 0, kF16, 0})
    ->Args({1, 9, 3, 64, 4095, 0, kF16, 0})
    ->Args({1, 9, 3, 64, 65535, 0, kF16, 0})
    ->Args({1, 9, 3, 64, 65535, 0, kF32, 0})
    ->Args({1, 28, 4, 128, 4095, 0, kBF16, 0})
    ->Args({1, 28, 4, 128, 65535, 0, kBF16, 0})
    ->Args({1, 28, 4, 128, 65535, 4096, kBF16, 0})
    ->Args({1, 28, 4, 128, 65535, 4096, kBF16, 128})
    ->Args({1, 32, 8, 64, 262143, 4096, kBF16, 0})
    ->UseRealTime();
BENCHMARK(attend)
    ->Name("softmax_attention/prefill")
    ->Args({512, 9, 3, 64, 0, 0, kF16, 0})
    ->Args({2048, 9, 3, 64, 0, 0, kF32, 0})
    ->Args({2048, 9, 3, 64, 0, 0, kF16, 0})
    ->Args({2048, 9, 3, 64, 0, 0, kBF16, 0})
    ->Args({512, 28, 4, 128, 16384, 4096, kBF16, 0})
    ->Args({512, 28, 4, 128, 16384, 4096, kBF16, 128})
    ->Args({512, 28, 4, 128, 16384, 4096, kF32, 0})
    ->Args({512, 28, 4, 128, 16384, 4096, kF32, 128})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace spb::ops

BENCHMARK_MAIN();
