// Times spike_matmul beside what it competes with, in turns, so that both see the same machine.
// Every product is verified first: a wrong answer has no speed. The figures are counters, each
// from the fastest step:
//   decode/N x K             one row of counts against ops::matmul with q8_0 weights of that shape
//   residual/N x K           the same with 1 % of the codes beyond int8, as a published checkpoint
//   events/N x K/silence     event-driven against dense, one row of which a share is silent
//   prefill/N x K/M          M rows against ops::matmul with bf16 weights
//   planes/N x K/M           the spike train against the dense product
// `gain` is the other one's time divided by that of the path in question: above 1 it is faster.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "core/block_formats.h"
#include "ops/matmul/matmul.h"
#include "spike/spike_matmul/spike_matmul_problem.h"

namespace spb::spike {
namespace {

using test::Codes;
using test::Counts;

Context& context() {
  static Context instance;
  return instance;
}

struct Size {
  int64_t rows, columns;
};
constexpr Size kSizes[] = {{512, 2048}, {2048, 2048}, {8192, 2048}, {2048, 8192}, {1536, 576}};

// Weights used in turn, more of them than caches hold.
constexpr int64_t kWorkingSet = int64_t{320} << 20;

int64_t copies_for(const Size& size) {
  return std::max<int64_t>(2, kWorkingSet / (size.rows * size.columns));
}

// Ends the program unless y has the bits of the reference on the first rows of weights.
void verify(const Codes& w, const Counts& s, const ConstTensorView& y) {
  const int64_t rows = std::min<int64_t>(w.codes.shape()[0], 40);
  const int64_t tokens = s.core.shape()[0];
  SpikeWeightSource source = w.source();
  source.codes = source.codes.rows(0, rows);
  source.scales = source.scales.rows(0, rows);
  size_t residual = 0;
  while (residual < w.residual.size() && w.residual[residual].row < rows) ++residual;
  source.residual = source.residual.first(residual);
  Tensor want(DType::kF32, Shape{tokens, rows});
  spike_matmul_reference(s.view, source, {}, want);
  const ConstTensorView got{y.data(), DType::kF32, want.shape(), y.row_stride_bytes()};
  if (!spb::test::same_bits(got, want)) {
    std::fprintf(stderr, "spike_matmul_bench: wrong result\n");
    std::exit(1);
  }
}

// Source, several prepared copies, and counts to multiply them with.
class Problem {
 public:
  Problem(const Size& size, int64_t tokens, double silence, int64_t copies, bool residual = false)
      : codes_(test::random_codes(rng_, size.rows, size.columns)),
        counts_(test::make_counts(rng_, test::random_counts(rng_, tokens, size.columns, silence))),
        y_(DType::kF32, Shape{tokens, size.rows}) {
    if (residual) test::add_residual(rng_, codes_, size.rows * size.columns / 100, 200);
    for (int64_t i = 0; i < copies; ++i) {
      weights_.push_back(prepare_spike_weight(
          context(), codes_.source(), {.channel_major = tokens == 1, .short_last_group = true}));
    }
  }

  // Other counts for the same weights.
  void fire(int64_t tokens, double silence) {
    const int64_t channels = codes_.codes.shape()[1];
    counts_ = test::make_counts(rng_, test::random_counts(rng_, tokens, channels, silence));
  }

  void run(SpikePath path) {
    const SpikeMatmulTarget target{&weights_[next_++ % weights_.size()], {}, y_};
    spike_matmul(context(), {&counts_.view, {&target, 1}, path});
  }

  void verify_path(SpikePath path) {
    run(path);
    verify(codes_, counts_, y_);
  }

 private:
  Rng rng_{1};
  Codes codes_;
  Counts counts_;
  Tensor y_;
  std::vector<SpikeWeight> weights_;
  size_t next_ = 0;
};

// ops::matmul on weights of another format, one random row repeated.
class FloatProblem {
 public:
  FloatProblem(const Size& size, DType dtype, int64_t tokens, int64_t copies)
      : source_(dtype, Shape{size.rows, size.columns}),
        x_(DType::kF32, Shape{tokens, size.columns}),
        y_(DType::kF32, Shape{tokens, size.rows}) {
    Rng rng(2);
    for (int64_t i = 0; i < tokens * size.columns; ++i) x_.as<float>()[i] = rng.normal();
    std::vector<float> row(static_cast<size_t>(size.columns));
    for (float& v : row) v = rng.normal();
    for (int64_t n = 0; n < size.rows; ++n) {
      if (dtype == DType::kBF16) {
        auto* out = source_.view().row_as<bf16>(n);
        for (int64_t c = 0; c < size.columns; ++c) out[c] = to_bf16(row[static_cast<size_t>(c)]);
      } else {
        quantize_row(dtype, row.data(), source_.view().row(n), size.columns);
      }
    }
    for (int64_t i = 0; i < copies; ++i) {
      weights_.push_back(ops::prepare_matmul_weight(context(), source_));
    }
  }

  void run() {
    const ops::MatmulTarget target{&weights_[next_++ % weights_.size()], {}, y_};
    ops::matmul(context(), {x_, {&target, 1}});
  }

 private:
  Tensor source_;
  Tensor x_;
  Tensor y_;
  std::vector<ops::MatmulWeight> weights_;
  size_t next_ = 0;
};

template <typename Body>
double seconds_of(Body body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Steps of both in turns; the iteration is the step of `mine`.
template <typename Mine, typename Other>
void compare(benchmark::State& state, const char* other_name, Mine mine, Other other) {
  double best = 1e9;
  double best_other = 1e9;
  for (auto _ : state) {
    best_other = std::min(best_other, seconds_of(other));
    const double seconds = seconds_of(mine);
    best = std::min(best, seconds);
    state.SetIterationTime(seconds);
  }
  state.counters["best_us"] = best * 1e6;
  state.counters[other_name] = best_other * 1e6;
  state.counters["gain"] = best_other / best;
}

void decode(benchmark::State& state, const Size& size, bool residual) {
  const int64_t copies = copies_for(size);
  Problem mine(size, 1, 0.18, copies, residual);
  FloatProblem other(size, DType::kQ8_0, 1, copies);
  mine.verify_path(SpikePath::kDense);
  compare(
      state, "q8_0_us", [&] { mine.run(SpikePath::kDense); }, [&] { other.run(); });
}

void events(benchmark::State& state, const Size& size, double silence) {
  // Kept while only the silence changes: making the copies takes longer than timing them.
  static std::unique_ptr<Problem> kept;
  static Size kept_size = {};
  if (kept == nullptr || kept_size.rows != size.rows || kept_size.columns != size.columns) {
    kept = std::make_unique<Problem>(size, 1, silence, copies_for(size));
    kept_size = size;
  }
  Problem& problem = *kept;
  problem.fire(1, silence);
  problem.verify_path(SpikePath::kDense);
  problem.verify_path(SpikePath::kEvents);
  compare(
      state, "dense_us", [&] { problem.run(SpikePath::kEvents); },
      [&] { problem.run(SpikePath::kDense); });
}

void prefill(benchmark::State& state, const Size& size, int64_t tokens) {
  Problem mine(size, tokens, 0.18, 1);
  FloatProblem other(size, DType::kBF16, tokens, 1);
  mine.verify_path(SpikePath::kDense);
  compare(
      state, "bf16_us", [&] { mine.run(SpikePath::kDense); }, [&] { other.run(); });
}

void planes(benchmark::State& state, const Size& size, int64_t tokens) {
  Problem problem(size, tokens, 0.18, 1);
  problem.verify_path(SpikePath::kPlanes);
  compare(
      state, "dense_us", [&] { problem.run(SpikePath::kPlanes); },
      [&] { problem.run(SpikePath::kDense); });
}

void register_all() {
  const auto add = [](const std::string& label, auto body) {
    benchmark::RegisterBenchmark(label.c_str(), body)->UseManualTime();
  };
  for (const Size& size : kSizes) {
    const std::string shape = fmt::format("{}x{}", size.rows, size.columns);
    add("decode/" + shape, [size](benchmark::State& s) { decode(s, size, false); });
    add("residual/" + shape, [size](benchmark::State& s) { decode(s, size, true); });
    for (int tenths = 0; tenths < 10; ++tenths) {
      const double silence = 0.1 * tenths;
      add(fmt::format("events/{}/{:.1f}", shape, silence),
          [size, silence](benchmark::State& s) { events(s, size, silence); });
    }
    for (const int64_t tokens : {4, 8, 12, 16, 64, 512}) {
      add(fmt::format("prefill/{}/{}", shape, tokens),
          [size, tokens](benchmark::State& s) { prefill(s, size, tokens); });
    }
    add(fmt::format("planes/{}/16", shape), [size](benchmark::State& s) { planes(s, size, 16); });
  }
}

}  // namespace
}  // namespace spb::spike

int main(int argc, char** argv) {
  spb::spike::register_all();
  benchmark::Initialize(&argc, argv);
  std::printf("instruction set %s, %d threads\n", std::string(spb::name(spb::isa())).c_str(),
              spb::spike::context().pool().threads());
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
