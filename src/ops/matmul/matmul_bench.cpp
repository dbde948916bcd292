// Verifies every product against the reference, then times it. Counters:
//   GB/s     bytes of weights per second        of_read     share of a plain read of as many bytes
//   GFLOP/s  2 M N K per second                 tokens/s    rows of x through one layer stack
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/block_formats.h"
#include "core/buffer.h"
#include "core/isa.h"
#include "core/rng.h"
#include "ops/matmul/matmul.h"

namespace spb::ops {
namespace {

Context& context() {
  static Context instance;
  return instance;
}

Tensor random_tensor(Rng& rng, int64_t rows, int64_t columns) {
  Tensor t(DType::kF32, Shape{rows, columns});
  for (int64_t i = 0; i < rows * columns; ++i) t.as<float>()[i] = rng.normal();
  return t;
}

// One random row of weights repeated with rotated blocks: quick to make at any size.
Tensor random_weights(Rng& rng, DType dtype, int64_t rows, int64_t columns) {
  Tensor w(dtype, Shape{rows, columns});
  std::vector<float> row(static_cast<size_t>(columns));
  const int64_t distinct = std::min<int64_t>(rows, 37);
  for (int64_t n = 0; n < distinct; ++n) {
    for (float& v : row) v = rng.normal();
    if (can_quantize(dtype)) {
      quantize_row(dtype, row.data(), w.view().row(n), columns);
      continue;
    }
    auto* bytes = reinterpret_cast<uint8_t*>(w.view().row(n));
    const int64_t size = block_bytes(dtype);
    for (int64_t i = 0; i < row_bytes(dtype, columns); ++i) {
      bytes[i] = static_cast<uint8_t>(rng.next());
      // The f16 scales: a high byte of 0x14 keeps them near 0.001.
      const int64_t at = i % size;
      if (dtype == DType::kQ6_K ? at == 209 : at == 1 || at == 3) bytes[i] = 0x14;
    }
  }
  const auto bytes = static_cast<size_t>(row_bytes(dtype, columns));
  for (int64_t n = distinct; n < rows; ++n) {
    std::memcpy(w.view().row(n), w.view().row(n % distinct), bytes);
  }
  return w;
}

// Ends the program when a product is wrong: a wrong answer has no speed.
void verify(const Tensor& x, const Tensor& w, const Tensor& y) {
  const int64_t rows = std::min<int64_t>(w.shape()[0], 40);
  const int64_t tokens = x.shape()[0];
  Tensor want(DType::kF32, Shape{tokens, rows});
  matmul_reference(x, w.view().rows(0, rows), {}, want);
  double error = 0;
  double power = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t n = 0; n < rows; ++n) {
      const double truth = static_cast<double>(want.view().row_as<float>(i)[n]);
      error += std::pow(static_cast<double>(y.view().row_as<float>(i)[n]) - truth, 2);
      power += truth * truth;
    }
  }
  const double limit = w.dtype() == DType::kF32 ? 1e-5 : 2e-2;
  if (!(std::sqrt(error) <= limit * std::sqrt(power))) {
    std::fprintf(stderr, "%s: wrong result: relative error %g, limit %g\n",
                 std::string(name(w.dtype())).c_str(), std::sqrt(error / power), limit);
    std::exit(1);
  }
}

int64_t sum_words(const std::byte* data, int64_t bytes) {
  int64_t sums[8] = {};
  const auto* words = reinterpret_cast<const int64_t*>(data);
  for (int64_t i = 0; i + 8 <= bytes / 8; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  int64_t total = 0;
  for (int64_t s : sums) total += s;
  return total;
}

// Seconds for every thread to read its share of `memory` once: the ceiling for decode.
double read_seconds(const Buffer& memory) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    context().pool().parallel_for(memory.bytes(), 4096, [&](int64_t begin, int64_t end, int) {
      benchmark::DoNotOptimize(sum_words(memory.data() + begin, end - begin));
    });
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

void report(benchmark::State& state, double bytes, double flops) {
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  if (bytes > 0) state.counters["GB/s"] = benchmark::Counter(bytes / 1e9, rate);
  if (flops > 0) state.counters["GFLOP/s"] = benchmark::Counter(flops / 1e9, rate);
}

struct Product {
  DType dtype;
  int64_t m, n, k;
  int copies;
  bool repack = true;  // else the rows stay as a mapped file has them
};

// Matrices that together exceed the caches are used in turn.
void product(benchmark::State& state, const Product& p) {
  const auto [dtype, m, n, k, copies, repack] = p;
  Rng rng(1);
  const Tensor w = random_weights(rng, dtype, n, k);
  const Tensor x = random_tensor(rng, m, k);
  Tensor y(DType::kF32, Shape{m, n});
  std::vector<Tensor> sources;
  std::vector<MatmulWeight> weights;
  for (int i = 0; i < copies; ++i) {
    sources.emplace_back(dtype, w.shape());
    std::memcpy(sources.back().view().data(), w.view().data(), static_cast<size_t>(w.bytes()));
    weights.push_back(prepare_matmul_weight(context(), sources.back(), repack));
    if (weights.back().owns_memory()) sources.pop_back();
  }
  size_t next = 0;
  const auto step = [&] {
    const MatmulTarget target{&weights[next++ % weights.size()], {}, y};
    matmul(context(), {x, {&target, 1}});
  };
  step();
  verify(x, w, y);
  Buffer memory(weights[0].bytes() * copies);
  for (int64_t i = 0; i < memory.bytes(); i += 4096) memory.data()[i] = std::byte{1};
  const double ceiling = read_seconds(memory) / copies;
  double best = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    step();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  if (m == 1) state.counters["of_read"] = ceiling / best;
  report(state, m == 1 ? static_cast<double>(weights[0].bytes()) : 0.0,
         2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k));
  state.counters["best_GFLOP/s"] =
      2e-9 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) / best;
}

// The matrices of a Llama block, called as a model calls them.
struct Block {
  int64_t hidden, key_value, intermediate, layers, vocabulary;
};
constexpr Block kSmall = {576, 192, 1536, 30, 49152};

void layer_stack(benchmark::State& state, DType dtype, int64_t m) {
  Rng rng(2);
  const Block& b = kSmall;
  struct Layer {
    MatmulWeight q, k, v, o, gate, up, down;
  };
  std::vector<Tensor> sources;
  std::vector<Layer> layers;
  const auto weight = [&](int64_t n, int64_t k) {
    sources.push_back(random_weights(rng, dtype, n, k));
    return prepare_matmul_weight(context(), sources.back());
  };
  for (int64_t i = 0; i < b.layers; ++i) {
    layers.push_back({weight(b.hidden, b.hidden), weight(b.key_value, b.hidden),
                      weight(b.key_value, b.hidden), weight(b.hidden, b.hidden),
                      weight(b.intermediate, b.hidden), weight(b.intermediate, b.hidden),
                      weight(b.hidden, b.intermediate)});
  }
  const Tensor head_source = random_weights(rng, DType::kQ8_0, b.vocabulary, b.hidden);
  const MatmulWeight head = prepare_matmul_weight(context(), head_source);
  Tensor x = random_tensor(rng, m, b.hidden);
  Tensor inner = random_tensor(rng, m, b.intermediate);
  Tensor q(DType::kF32, Shape{m, b.hidden});
  Tensor k(DType::kF32, Shape{m, b.key_value});
  Tensor v(DType::kF32, Shape{m, b.key_value});
  Tensor gate(DType::kF32, Shape{m, b.intermediate});
  Tensor up(DType::kF32, Shape{m, b.intermediate});
  Tensor logits(DType::kF32, Shape{1, b.vocabulary});
  const MatmulTarget check{&layers[0].gate, {}, gate};
  matmul(context(), {x, {&check, 1}});
  verify(x, sources[4], gate);
  const auto call = [](ConstTensorView in, std::initializer_list<MatmulTarget> targets) {
    matmul(context(), {in, {targets.begin(), targets.size()}});
  };
  double best = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    for (const Layer& l : layers) {
      call(x, {{&l.q, {}, q}, {&l.k, {}, k}, {&l.v, {}, v}});
      call(q, {{&l.o, {}, x}});
      call(x, {{&l.gate, {}, gate}, {&l.up, {}, up}});
      call(inner, {{&l.down, {}, x}});
    }
    call(x.view().rows(m - 1, 1), {{&head, {}, logits}});
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  state.counters["best_ms"] = best * 1e3;
  state.counters["best_tokens/s"] = static_cast<double>(m) / best;
}

void prepare(benchmark::State& state, DType dtype) {
  Rng rng(3);
  const Tensor w = random_weights(rng, dtype, 8192, 2048);
  for (auto _ : state) benchmark::DoNotOptimize(prepare_matmul_weight(context(), w).bytes());
  report(state, static_cast<double>(w.bytes()), 0);
}

void read_ceiling(benchmark::State& state, int64_t bytes) {
  Buffer memory(bytes);
  for (int64_t i = 0; i < bytes; i += 4096) memory.data()[i] = std::byte{1};
  for (auto _ : state) state.SetIterationTime(read_seconds(memory));
  report(state, static_cast<double>(bytes), 0);
}

void register_all() {
  const DType all[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ8_0, DType::kQ5_0,
                       DType::kQ5_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K,
                       DType::kBF16, DType::kF16,  DType::kF32};
  const auto add = [](const std::string& label, auto body) {
    benchmark::RegisterBenchmark(label.c_str(), body)->UseManualTime();
  };
  for (int64_t mib : {1, 64, 512}) {
    add(fmt::format("read/{}MiB", mib), [mib](benchmark::State& s) { read_ceiling(s, mib << 20); });
  }
  for (DType dtype : all) {
    const std::string type(name(dtype));
    if (!is_float(dtype)) {
      benchmark::RegisterBenchmark(("prepare/" + type).c_str(), [dtype](benchmark::State& s) {
        prepare(s, dtype);
      })->UseRealTime();
    }
    for (int64_t m : {1, 4, 16, 64, 512, 2048}) {
      add(fmt::format("product/{}/M{}", type, m), [dtype, m](benchmark::State& s) {
        product(s, {dtype, m, 4096, 2048, m < 64 ? 16 : 1});
      });
    }
    for (const auto& [n, k, copies] : {std::array{4864, 896, 60}, std::array{8192, 2048, 16}}) {
      for (bool repack : {true, false}) {
        const Product decode{dtype, 1, n, k, copies, repack};
        add(fmt::format("decode/{}/{}x{}/{}", type, n, k, repack ? "repacked" : "mapped"),
            [decode](benchmark::State& s) { product(s, decode); });
      }
    }
  }
  for (DType dtype : {DType::kQ4_1, DType::kQ4_0, DType::kQ8_0}) {
    for (int64_t m : {1, 8, 64, 512, 2048}) {
      add(fmt::format("layers135M/{}/M{}", name(dtype), m),
          [dtype, m](benchmark::State& s) { layer_stack(s, dtype, m); });
    }
  }
}

}  // namespace
}  // namespace spb::ops

int main(int argc, char** argv) {
  spb::ops::register_all();
  benchmark::Initialize(&argc, argv);
  std::printf("instruction set %s, %d threads\n", std::string(spb::name(spb::isa())).c_str(),
              spb::ops::context().pool().threads());
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
