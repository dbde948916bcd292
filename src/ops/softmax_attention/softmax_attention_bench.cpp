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
  // Keys and values, with scales where they are codes.
  struct Cache {
    Tensor keys, values, key_scales, value_scales;
  };

  Tensor q, k, v, o;
  Cache cache, sinks;
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
    const auto dtype = static_cast<DType>(state.range(6));
    q = Tensor(DType::kF32, Shape{tokens, heads, head_dim});
    o = Tensor(DType::kF32, q.shape());
    cache = make_cache(dtype, Shape{kv_heads, capacity, head_dim});
    Rng rng(1);
    fill(q, rng);
    for (int64_t position = 0; position < before + tokens;) {
      const int64_t count = std::min<int64_t>({before + tokens - position, capacity, 1024});
      append_random(context, cache, position, count, rng);
      position += count;
    }
    args = {q,
            cache.keys,
            cache.values,
            o,
            before,
            window,
            1.0f / std::sqrt(static_cast<float>(head_dim))};
    args.key_scales = cache.key_scales;
    args.value_scales = cache.value_scales;
    const int64_t sink_tokens = state.range(7);
    if (sink_tokens > 0) {
      sinks = make_cache(dtype, Shape{kv_heads, sink_tokens, head_dim});
      append_random(context, sinks, 0, sink_tokens, rng);
      args.sink_keys = sinks.keys;
      args.sink_values = sinks.values;
      args.sink_key_scales = sinks.key_scales;
      args.sink_value_scales = sinks.value_scales;
    }
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t seen = before + i + 1;
      pairs +=
          static_cast<double>(heads * (sink_tokens + (window > 0 ? std::min(window, seen) : seen)));
    }
  }

  static void fill(Tensor& tensor, Rng& rng) {
    std::generate_n(tensor.as<float>(), tensor.shape().elements(),
                    [&] { return rng.uniform(-1.5f, 1.5f); });
  }

  static Cache make_cache(DType dtype, const Shape& shape) {
    Cache cache{Tensor(dtype, shape), Tensor(dtype, shape), {}, {}};
    if (dtype == DType::kI8) {
      cache.key_scales = Tensor(DType::kF32, Shape{shape[0], shape[1]});
      cache.value_scales = Tensor(DType::kF32, cache.key_scales.shape());
    }
    return cache;
  }

  void append_random(Context& context, Cache& into, int64_t position, int64_t count, Rng& rng) {
    k = Tensor(DType::kF32, Shape{count, into.keys.shape()[0], into.keys.shape()[2]});
    v = Tensor(DType::kF32, k.shape());
    fill(k, rng);
    fill(v, rng);
    append_to_cache(context,
                    {k, v, into.keys, into.values, position, into.key_scales, into.value_scales});
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
    const DType dtype = problem.cache.keys.dtype();
    const int64_t row = row_bytes(dtype, state.range(3)) + (dtype == DType::kI8 ? 4 : 0);
    const double bytes = 2 * problem.pairs / group * static_cast<double>(row);
    state.counters["B/s"] = benchmark::Counter(bytes * iterations, benchmark::Counter::kIsRate);
  }
}

constexpr int kF32 = static_cast<int>(DType::kF32);
constexpr int kF16 = static_cast<int>(DType::kF16);
constexpr int kBF16 = static_cast<int>(DType::kBF16);
constexpr int kI8 = static_cast<int>(DType::kI8);

// SmolLM2-135M: 9 query heads, 3 kv heads, head_dim 64. SpikingBrain-7B: 28, 4, 128, window 4096.
// SpikingBrain-1B: 32, 8, 64.
BENCHMARK(attend)
    ->Name("softmax_attention/decode")
    ->Args({1, 9, 3, 64, 1000, 0, kF16, 0})
    ->Args({1, 9, 3, 64, 4095, 0, kF16, 0})
    ->Args({1, 9, 3, 64, 4095, 0, kI8, 0})
    ->Args({1, 9, 3, 64, 32767, 0, kF16, 0})
    ->Args({1, 9, 3, 64, 32767, 0, kI8, 0})
    ->Args({1, 9, 3, 64, 65535, 0, kF16, 0})
    ->Args({1, 9, 3, 64, 65535, 0, kI8, 0})
    ->Args({1, 9, 3, 64, 65535, 0, kF32, 0})
    ->Args({1, 28, 4, 128, 4095, 0, kBF16, 0})
    ->Args({1, 28, 4, 128, 65535, 0, kBF16, 0})
    ->Args({1, 28, 4, 128, 65535, 0, kI8, 0})
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
    ->Args({2048, 9, 3, 64, 0, 0, kI8, 0})
    ->Args({512, 28, 4, 128, 16384, 4096, kBF16, 0})
    ->Args({512, 28, 4, 128, 16384, 4096, kBF16, 128})
    ->Args({512, 28, 4, 128, 16384, 4096, kF32, 0})
    ->Args({512, 28, 4, 128, 16384, 4096, kF32, 128})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace spb::ops

BENCHMARK_MAIN();
