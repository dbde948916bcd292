// Speed of gated_linear_attention on a CUDA device: verified, then timed over inputs that rotate
// through more memory than the cache of level 2 holds.
//
// Arguments: sequences, tokens of each, query heads, kv heads, key_dim = value_dim, gates: 0 for
// weak ones, else uniform down to minus that. B/s counts every input and output once, which is the
// least that can be moved; FLOP/s counts the recurrence as in the bench of the CPU.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "core/half.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "core/widen.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {
namespace {

constexpr int64_t kRotatedBytes = 200 << 20;
constexpr int64_t kVerifiedTokens = 8192;  // of the reference's patience

Tensor random_bf16(Rng& rng, const Shape& shape) {
  Tensor tensor(DType::kBF16, shape);
  std::generate_n(tensor.as<bf16>(), shape.elements(), [&] { return to_bf16(rng.normal()); });
  return tensor;
}

struct Problem {
  int64_t sequences, tokens, heads, kv_heads, dim;
  Tensor q, k, v, g, states;  // on the host

  explicit Problem(const benchmark::State& run)
      : sequences(run.range(0)),
        tokens(run.range(1)),
        heads(run.range(2)),
        kv_heads(run.range(3)),
        dim(run.range(4)) {
    Rng rng(1);
    const int64_t all = sequences * tokens;
    q = random_bf16(rng, Shape{all, heads, dim});
    k = random_bf16(rng, Shape{all, kv_heads, dim});
    v = random_bf16(rng, k.shape());
    g = Tensor(DType::kF32, k.shape());
    const float strongest = run.range(5) == 0 ? 0.1f : static_cast<float>(run.range(5));
    std::generate_n(g.as<float>(), g.shape().elements(),
                    [&] { return -rng.uniform(0.0f, strongest); });
    states = Tensor(DType::kF32, Shape{sequences * kv_heads, dim, dim});
    std::generate_n(states.as<float>(), states.shape().elements(), [&] { return rng.normal(); });
  }

  int64_t bytes() const {
    return 2 * q.bytes() + k.bytes() + v.bytes() + g.bytes() + 2 * states.bytes();
  }
  double flops() const {
    return static_cast<double>(sequences * tokens * dim * dim) *
           static_cast<double>(3 * kv_heads + 2 * heads);
  }
  std::vector<GatedLinearAttentionSequence> sequences_of(TensorView all_states) const {
    std::vector<GatedLinearAttentionSequence> list;
    for (int64_t i = 0; i < sequences; ++i) {
      const TensorView state(all_states.row(i * kv_heads * dim), DType::kF32,
                             Shape{kv_heads, dim, dim});
      list.push_back({tokens, state});
    }
    return list;
  }
};

struct DeviceProblem {
  Tensor q, k, v, g, states, o;
  std::vector<GatedLinearAttentionSequence> sequences;
  GatedLinearAttentionArgs args;

  DeviceProblem(Context& context, const Problem& problem, GatedLinearAttentionForm form)
      : q(to_device(context, problem.q)),
        k(to_device(context, problem.k)),
        v(to_device(context, problem.v)),
        g(to_device(context, problem.g)),
        states(to_device(context, problem.states)),
        o(DType::kBF16, problem.q.shape(), context.device()),
        sequences(problem.sequences_of(states)) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(problem.dim));
    args = {q, k, v, g, {}, o, scale, form, sequences};
  }
};

double relative_error(const Tensor& got, const Tensor& expected) {
  double difference = 0;
  double size = 1e-30;
  for (int64_t i = 0; i < expected.shape().elements(); ++i) {
    const double x = got.as<float>()[i];
    const double y = expected.as<float>()[i];
    difference += (x - y) * (x - y);
    size += y * y;
  }
  return std::sqrt(difference / size);
}

bool verify(Context& context, const Problem& problem, GatedLinearAttentionForm form) {
  DeviceProblem device(context, problem, form);
  gated_linear_attention(context, device.args);
  Tensor o(DType::kBF16, device.o.shape());
  Tensor states(DType::kF32, device.states.shape());
  to_host(context, device.o, o);
  to_host(context, device.states, states);
  const Tensor q = widened(problem.q);
  const Tensor k = widened(problem.k);
  const Tensor v = widened(problem.v);
  Tensor expected(DType::kF32, q.shape());
  Tensor expected_states(DType::kF32, states.shape());
  std::copy_n(problem.states.as<float>(), states.shape().elements(), expected_states.as<float>());
  const auto sequences = problem.sequences_of(expected_states);
  GatedLinearAttentionArgs args = device.args;
  args.q = q;
  args.k = k;
  args.v = v;
  args.g = problem.g;
  args.o = expected;
  args.sequences = sequences;
  gated_linear_attention_reference(args);
  return relative_error(widened(o), expected) <= 5e-3 &&
         relative_error(states, expected_states) <= 5e-3;
}

void measure(benchmark::State& run, GatedLinearAttentionForm form) {
  const std::string reason = cuda::unusable_reason(0);
  if (!reason.empty()) return run.SkipWithError(reason.c_str());
  Context context(Device{Device::Type::kCuda, 0}, 1);
  const Problem problem(run);
  if (problem.sequences * problem.tokens <= kVerifiedTokens && !verify(context, problem, form)) {
    return run.SkipWithError("differs from the reference");
  }
  std::vector<DeviceProblem> copies;
  copies.reserve(1 + static_cast<size_t>(kRotatedBytes / problem.bytes()));
  while (copies.size() < copies.capacity()) copies.emplace_back(context, problem, form);
  constexpr int kCalls = 24;  // queued together: launches are not what is measured
  size_t next = 0;
  for (auto _ : run) {
    context.stream().synchronize();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) {
      gated_linear_attention(context, copies[next++ % copies.size()].args);
    }
    context.stream().synchronize();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    run.SetIterationTime(seconds.count() / kCalls);
  }
  const auto iterations = static_cast<double>(run.iterations());
  run.counters["B/s"] = benchmark::Counter(static_cast<double>(problem.bytes()) * iterations,
                                           benchmark::Counter::kIsRate);
  run.counters["FLOP/s"] =
      benchmark::Counter(problem.flops() * iterations, benchmark::Counter::kIsRate);
}

void automatic(benchmark::State& run) { measure(run, GatedLinearAttentionForm::kAutomatic); }
void recurrent(benchmark::State& run) { measure(run, GatedLinearAttentionForm::kRecurrent); }
void chunked(benchmark::State& run) { measure(run, GatedLinearAttentionForm::kChunked); }

void settings(benchmark::internal::Benchmark* bench) {
  bench->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(20);
}

// SpikingBrain-7B: 28 query heads, 4 kv heads, 128. SpikingBrain-1B: 32, 8, 64.
void shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t tokens : {512, 2048, 8192, 32768}) bench->Args({1, tokens, 28, 4, 128, 0});
  bench->Args({1, 8192, 28, 4, 128, 2});
  bench->Args({1, 8192, 28, 4, 128, 20});
  bench->Args({1, 8192, 32, 8, 64, 0});
  bench->Args({8, 1000, 28, 4, 128, 0});
  for (const int64_t sequences : {1, 16, 64, 256}) bench->Args({sequences, 1, 28, 4, 128, 0});
  bench->Args({64, 1, 32, 8, 64, 0});
  settings(bench);
}
BENCHMARK(automatic)->Name("gated_linear_attention/cuda")->Apply(shapes);

// Where the forms meet.
void short_shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t tokens : {8, 16, 32, 64}) bench->Args({1, tokens, 28, 4, 128, 0});
  settings(bench);
}
BENCHMARK(recurrent)->Name("gated_linear_attention/cuda/recurrent")->Apply(short_shapes);
BENCHMARK(chunked)->Name("gated_linear_attention/cuda/chunked")->Apply(short_shapes);

}  // namespace
}  // namespace spb::ops
