// Spikes on a CUDA device at the shapes of SpikingBrain-7B: time, rate, and share of what the card
// can do, with dense bf16 products of the same shapes beside them.
//
// The floor of an operator is the larger of its bytes over the rate of a large copy and its
// operations over twice the rate of a large bf16 product. Inputs take turns among sets
// that together exceed the L2 cache. Some results of every product are compared with plain sums
// before it is timed; *_cuda_test.cpp compare all.
//
// --tsv FILE: the rows also as tab-separated values. --quick: only the largest thresholds and
// product.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "ops/cuda_bench.h"
#include "ops/swiglu/swiglu.h"
#include "spike/spike_matmul/spike_gated_matmul.h"
#include "spike/threshold/spike_values.h"

namespace spb::spike {
namespace {

using Bench = ops::CudaBench;

constexpr int64_t kHidden = 3584;
constexpr int64_t kFeedForward = 18944;
constexpr int64_t kSetBytes = 120 << 20;  // that sets of weights together reach

struct Source {
  Tensor codes;
  Tensor scales;
};

Source random_source(Rng& rng, int64_t rows, int64_t columns) {
  Source source{Tensor(DType::kI8, Shape{rows, columns}),
                Tensor(DType::kF32, Shape{rows, columns / kScaleGroup})};
  for (int64_t i = 0; i < rows * columns; ++i) {
    source.codes.as<int8_t>()[i] = static_cast<int8_t>(static_cast<int64_t>(rng.next()) % 128);
  }
  for (int64_t i = 0; i < source.scales.shape().elements(); ++i) {
    source.scales.as<float>()[i] = rng.uniform(0.0005f, 0.01f);
  }
  return source;
}

// Matrices that share their input, `sets` times over.
struct Problem {
  int64_t tokens;
  int64_t channels;
  std::vector<int64_t> rows;
  double silence = 0;  // of x; its weights then have channel-major copies
  SpikePath path = SpikePath::kAutomatic;

  int64_t weights() const {
    int64_t sum = 0;
    for (const int64_t n : rows) sum += n * channels;
    return sum;
  }
  int sets() const {
    return static_cast<int>(std::clamp<int64_t>(kSetBytes / weights() + 1, 1, 16));
  }
};

struct Fired {
  Tensor x, core, thresholds;
  SpikeCounts counts;
};

Fired fire(Bench& bench, const Problem& problem) {
  Context& context = bench.context();
  const Shape shape{problem.tokens, problem.channels};
  Fired fired{
      to_device(context, ops::random_rows(bench.rng(), DType::kBF16, shape, 1, problem.silence)),
      Tensor(DType::kI8, shape, context.device()),
      Tensor(DType::kF32, Shape{problem.tokens}, context.device()),
      {}};
  fired.counts.core = fired.core;
  fired.counts.thresholds = fired.thresholds;
  spike_threshold(context, {fired.x, {}, &fired.counts});
  return fired;
}

// Plain sums at some places of y.
void verify(Bench& bench, const Fired& fired, const Source& source, const Tensor& y) {
  bench.context().stream().synchronize();
  const Tensor x = widened(to_host(fired.x));
  const Tensor thresholds = to_host(fired.thresholds);
  const Tensor got = widened(to_host(y));
  for (int i = 0; i < 300; ++i) {
    const int64_t token = bench.rng().below(y.shape()[0]);
    const int64_t n = bench.rng().below(y.shape()[1]);
    float sum = 0;
    for (int64_t g = 0; g < source.scales.shape()[1]; ++g) {
      int64_t exact = 0;
      for (int64_t c = g * kScaleGroup; c < (g + 1) * kScaleGroup; ++c) {
        // The whole count, which the core may have clamped.
        exact += std::llrint(x.view().row_as<float>(token)[c] / thresholds.as<float>()[token]) *
                 source.codes.view().row_as<int8_t>(n)[c];
      }
      sum = std::fma(static_cast<float>(exact), source.scales.view().row_as<float>(n)[g], sum);
    }
    const float expected = to_float(to_bf16(thresholds.as<float>()[token] * sum));
    check(got.view().row_as<float>(token)[n] == expected,
          "bench: row {}, column {}: expected {}, got {}", token, n, expected,
          got.view().row_as<float>(token)[n]);
  }
}

const char* name(SpikePath path) { return path == SpikePath::kEvents ? "by events" : "chosen"; }

double dense_time(Bench& bench, const Problem& problem, const Fired& fired) {
  Context& context = bench.context();
  const int sets = problem.sets();
  std::vector<ops::MatmulWeight> weights;
  std::vector<Tensor> y;
  for (int set = 0; set < sets; ++set) {
    for (const int64_t n : problem.rows) {
      const Tensor host =
          ops::random_rows(bench.rng(), DType::kBF16, Shape{n, problem.channels}, 0.02f);
      weights.push_back(ops::prepare_matmul_weight(context, host));
      y.emplace_back(DType::kBF16, Shape{problem.tokens, n}, context.device());
    }
  }
  return bench.median(sets, std::max(sets, 5), [&](int set) {
    std::vector<ops::MatmulTarget> targets;
    for (size_t t = 0; t < problem.rows.size(); ++t) {
      const size_t at = static_cast<size_t>(set) * problem.rows.size() + t;
      targets.push_back({&weights[at], {}, y[at]});
    }
    ops::matmul(context, {fired.x, targets});
  });
}

void products(Bench& bench, const Problem& problem, bool dense) {
  Context& context = bench.context();
  const Arena::Scope scope(context.arena());
  const Fired fired = fire(bench, problem);
  const int sets = problem.sets();
  // The first rows of one source make up every matrix.
  const Source source = random_source(
      bench.rng(), *std::max_element(problem.rows.begin(), problem.rows.end()), problem.channels);
  std::vector<SpikeWeight> weights;
  std::vector<Tensor> y;
  for (int set = 0; set < sets; ++set) {
    for (const int64_t n : problem.rows) {
      weights.push_back(prepare_spike_weight(
          context, {source.codes.view().rows(0, n), source.scales.view().rows(0, n), {}},
          {.channel_major = problem.silence > 0}));
      y.emplace_back(DType::kBF16, Shape{problem.tokens, n}, context.device());
    }
  }
  const auto call = [&](int set) {
    std::vector<SpikeMatmulTarget> targets;
    for (size_t t = 0; t < problem.rows.size(); ++t) {
      const size_t at = static_cast<size_t>(set) * problem.rows.size() + t;
      targets.push_back({&weights[at], {}, y[at]});
    }
    spike_matmul(context, {&fired.counts, targets, problem.path});
  };
  call(0);
  verify(bench, fired, source, y[problem.rows.size() - 1]);
  const double time = bench.median(sets, std::max(sets, 5), call);
  const auto n = static_cast<double>(problem.weights()) / static_cast<double>(problem.channels);
  const auto m = static_cast<double>(problem.tokens);
  const double operations = 2 * m * static_cast<double>(problem.weights());
  const double bytes =
      static_cast<double>(problem.weights()) * (1 - problem.silence + 4.0 / kScaleGroup) +
      m * static_cast<double>(problem.channels) + 2 * m * n;
  const double bf16_bytes = 2 * (static_cast<double>(problem.weights()) +
                                 m * (static_cast<double>(problem.channels) + n));
  const double reference = dense ? dense_time(bench, problem, fired) : 0;
  if (reference > 0) {
    bench.row(fmt::format("bf16 {} x {} x {}", problem.tokens, n, problem.channels),
              {bf16_bytes, operations}, reference);
  }
  bench.row(fmt::format("spikes {} x {} x {}{}", problem.tokens, n, problem.channels,
                        problem.silence > 0 ? fmt::format(", {:.0f} % silent, {}",
                                                          100 * problem.silence, name(problem.path))
                                            : ""),
            {bytes, operations, 2}, time,
            reference > 0 ? fmt::format("{:.2f}x bf16", reference / time) : "");
}

// Gate, up and their swiglu in one operator and in three.
void gated(Bench& bench, int64_t tokens) {
  Context& context = bench.context();
  const Arena::Scope scope(context.arena());
  const Problem problem{tokens, kHidden, {kFeedForward, kFeedForward}};
  const Fired fired = fire(bench, problem);
  const Source source = random_source(bench.rng(), kFeedForward, kHidden);
  const SpikeWeight gate = prepare_spike_weight(context, {source.codes, source.scales, {}});
  const SpikeWeight up = prepare_spike_weight(context, {source.codes, source.scales, {}});
  const Shape shape{tokens, kFeedForward};
  Tensor y(DType::kBF16, shape, context.device());
  Tensor opened(DType::kBF16, shape, context.device());
  Tensor expected(DType::kBF16, shape, context.device());
  const SpikeMatmulTarget parts[] = {{&gate, {}, expected}, {&up, {}, opened}};
  const auto one = [&](int) { spike_gated_matmul(context, {&fired.counts, &gate, &up, y}); };
  const auto three = [&](int) {
    spike_matmul(context, {&fired.counts, parts});
    ops::swiglu(context, {expected, opened, expected});
  };
  one(0);
  three(0);
  context.stream().synchronize();
  const Tensor got = to_host(y);
  check(std::memcmp(got.view().data(), to_host(expected).view().data(),
                    static_cast<size_t>(got.view().bytes())) == 0,
        "bench: spike_gated_matmul: expected the bits of its parts, got others");
  const double operations =
      2 * static_cast<double>(tokens) * static_cast<double>(problem.weights());
  const double bytes = static_cast<double>(problem.weights()) * (1 + 4.0 / kScaleGroup) +
                       static_cast<double>(tokens * (kHidden + 2 * kFeedForward));
  const std::string what =
      fmt::format("gate, up, swiglu {} x {} x {}", tokens, kFeedForward, kHidden);
  bench.row(what + ", parts", {bytes, operations, 2}, bench.median(1, 5, three));
  bench.row(what, {bytes, operations, 2}, bench.median(1, 5, one));
}

void thresholds(Bench& bench, int64_t tokens, int64_t channels) {
  Context& context = bench.context();
  const Problem problem{tokens, channels, {1}};
  const Arena::Scope scope(context.arena());
  Fired fired = fire(bench, problem);
  const auto entries = static_cast<double>(tokens * channels);
  const double time = bench.median(1, 10, [&](int) {
    const Arena::Scope call(context.arena());
    spike_threshold(context, {fired.x, {}, &fired.counts});
  });
  bench.row(fmt::format("spike_threshold {} x {}", tokens, channels), {3 * entries}, time);
  Tensor y(DType::kBF16, fired.x.shape(), context.device());
  const double values = bench.median(1, 10, [&](int) { spike_values(context, fired.counts, y); });
  bench.row(fmt::format("spike_values {} x {}", tokens, channels), {3 * entries}, values);
}

void run(Bench& bench, bool quick) {
  const std::vector<int64_t> mixer_in = {kHidden, 512, 512, 512};
  const std::vector<int64_t> ffn_in = {kFeedForward, kFeedForward};
  if (quick) {
    thresholds(bench, 16384, kFeedForward);
    return products(bench, {8192, kHidden, ffn_in}, true);
  }
  for (const int64_t channels : {kHidden, kFeedForward}) thresholds(bench, 16384, channels);
  thresholds(bench, 16384 * 28, 128);
  thresholds(bench, 1, kHidden);
  for (const int64_t tokens : {8192, 16384}) {
    products(bench, {tokens, kHidden, ffn_in}, true);
    products(bench, {tokens, kHidden, mixer_in}, true);
    products(bench, {tokens, kHidden, {kHidden}}, true);
  }
  gated(bench, 16384);
  for (const int64_t tokens : {64, 256}) products(bench, {tokens, kHidden, ffn_in}, true);
  for (const int64_t tokens : {1, 4, 8}) {
    products(bench, {tokens, kHidden, ffn_in}, tokens != 4);
    products(bench, {tokens, kHidden, mixer_in}, tokens != 4);
    products(bench, {tokens, kHidden, {kHidden}}, tokens != 4);
    products(bench, {tokens, kFeedForward, {kHidden}}, tokens != 4);
  }
  for (const double silence : {0.01, 0.3, 0.5, 0.7, 0.9}) {
    for (const SpikePath path : {SpikePath::kEvents, SpikePath::kAutomatic}) {
      products(bench, {1, kHidden, ffn_in, silence, path}, false);
    }
    products(bench, {1, kHidden, mixer_in, silence, SpikePath::kEvents}, false);
  }
}

}  // namespace
}  // namespace spb::spike

int main(int count, char** arguments) {
  return spb::ops::run_cuda_bench(count, arguments, true, spb::spike::run);
}
