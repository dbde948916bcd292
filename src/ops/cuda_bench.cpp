// The operators on a CUDA device at the shapes of SpikingBrain-7B: time, floor and share of it.
//
// Before an operator is timed, a sample of its results at that shape is compared with its
// reference; *_cuda_test.cpp compare all results at smaller ones. Inputs take turns among sets that
// together exceed the L2 cache.
#include <cmath>

#include "ops/cuda_bench_shapes.h"
#include "ops/embedding/embedding.h"
#include "ops/gated_linear_attention/gated_linear_attention_cuda_bench.h"
#include "ops/matmul/gated_matmul.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"
#include "ops/sampling/sampling.h"
#include "ops/softmax_attention/softmax_attention_cuda_bench.h"
#include "ops/swiglu/swiglu.h"

namespace spb::ops {
namespace {

struct Matrix {
  const char* name;
  int64_t rows;
  int64_t columns;
};

// Products of x with some rows of a weight.
Tensor some_products(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& outputs) {
  Tensor some(weight.dtype(), Shape{std::ssize(outputs), weight.shape()[1]});
  for (int64_t i = 0; i < some.shape()[0]; ++i) {
    std::copy_n(weight.view().row(outputs[static_cast<size_t>(i)]), some.view().row_bytes_used(),
                some.view().row(i));
  }
  Tensor y(DType::kF32, Shape{x.shape()[0], some.shape()[0]});
  matmul_reference(x, some, {}, y);
  return y;
}

void products(CudaBench& bench, int64_t tokens, DType dtype, const Matrix& matrix) {
  Context& context = bench.context();
  Tensor host;  // of the first set
  std::vector<MatmulWeight> weights;
  std::vector<Tensor> x, y;
  for (int i = 0; i < kSets; ++i) {
    Tensor one = random_rows(bench.rng(), dtype, Shape{matrix.rows, matrix.columns}, 0.02f);
    weights.push_back(prepare_matmul_weight(context, one));
    x.push_back(bench.random(Shape{tokens, matrix.columns}, kActivations));
    y.emplace_back(kActivations, Shape{tokens, matrix.rows}, context.device());
    if (i == 0) host = std::move(one);
  }
  const auto call = [&](int i) {
    const auto set = static_cast<size_t>(i);
    const MatmulTarget target{&weights[set], {}, y[set]};
    matmul(context, {x[set], {&target, 1}});
  };
  const std::string what = fmt::format("matmul {} {}, {} tokens", matrix.name, name(dtype), tokens);
  call(0);
  const std::vector<int64_t> rows = spread(tokens, 16);
  const std::vector<int64_t> outputs = spread(matrix.rows, 256);
  verify(what, take_columns(take_rows(context, y[0], rows), outputs),
         some_products(take_rows(context, x[0], rows), host, outputs), 5e-3);
  const double bytes = static_cast<double>(weights[0].bytes()) +
                       2.0 * static_cast<double>(tokens * (matrix.rows + matrix.columns));
  bench.time(what, {bytes, 2.0 * static_cast<double>(tokens * matrix.rows * matrix.columns)}, call);
}

void gated_products(CudaBench& bench, int64_t tokens) {
  Context& context = bench.context();
  std::vector<Tensor> hosts, x, y;
  std::vector<MatmulWeight> weights;  // gate and up of every set
  for (int i = 0; i < kSets; ++i) {
    for (int part = 0; part < 2; ++part) {
      Tensor one = random_rows(bench.rng(), kActivations, Shape{kFeedForward, kHidden}, 0.02f);
      weights.push_back(prepare_matmul_weight(context, one));
      if (i == 0) hosts.push_back(std::move(one));
    }
    x.push_back(bench.random(Shape{tokens, kHidden}, kActivations));
    y.emplace_back(kActivations, Shape{tokens, kFeedForward}, context.device());
  }
  const auto call = [&](int i) {
    const auto set = static_cast<size_t>(i);
    gated_matmul(context, {x[set], &weights[2 * set], &weights[2 * set + 1], y[set]});
  };
  const std::string what = fmt::format("gated_matmul bf16, {} tokens", tokens);
  call(0);
  const std::vector<int64_t> rows = spread(tokens, 16);
  const std::vector<int64_t> outputs = spread(kFeedForward, 256);
  const Tensor x_host = take_rows(context, x[0], rows);
  const Tensor gate = some_products(x_host, hosts[0], outputs);
  const Tensor up = some_products(x_host, hosts[1], outputs);
  Tensor expected(DType::kF32, gate.shape());
  swiglu_reference({gate, up, expected});
  verify(what, take_columns(take_rows(context, y[0], rows), outputs), expected, 1e-2);
  const auto count = static_cast<double>(tokens);
  bench.time(
      what,
      {2.0 * static_cast<double>(weights[0].bytes()) + 2.0 * count * (kHidden + kFeedForward),
       4.0 * count * kHidden * kFeedForward},
      call);
}

void embeddings(CudaBench& bench) {
  Context& context = bench.context();
  const Tensor table = bench.random(Shape{kVocab, kHidden}, kActivations);
  for (const int64_t tokens : {8192, 1}) {
    std::vector<Tensor> ids, y;
    for (int i = 0; i < kSets; ++i) {
      Tensor host(DType::kI32, Shape{tokens});
      std::generate_n(host.as<int32_t>(), tokens,
                      [&] { return static_cast<int32_t>(bench.rng().below(kVocab)); });
      ids.push_back(bench.on_device(host));
      y.emplace_back(kActivations, Shape{tokens, kHidden}, context.device());
    }
    const auto call = [&](int i) {
      const auto set = static_cast<size_t>(i);
      embedding(context,
                {{ids[set].as<int32_t>(), static_cast<size_t>(tokens)}, table, y[set], true});
    };
    call(0);
    const Tensor chosen = to_host(ids[0]);
    const std::vector<int64_t> rows = spread(tokens, 16);
    std::vector<int64_t> places;
    for (const int64_t row : rows) places.push_back(chosen.as<int32_t>()[row]);
    const std::string what = fmt::format("embedding bf16, {} tokens", tokens);
    verify(what, take_rows(context, y[0], rows), take_rows(context, table, places), 0);
    bench.time(what, {4.0 * static_cast<double>(tokens * kHidden)}, call);
  }
}

void norms(CudaBench& bench, int64_t tokens) {
  Context& context = bench.context();
  std::vector<Tensor> x, residual, y;
  const Tensor weight = bench.random(Shape{1, kHidden}, DType::kF32);
  const ConstTensorView norm = weight.view().reshaped(Shape{kHidden});
  for (int i = 0; i < kSets; ++i) {
    for (auto* all : {&x, &residual}) {
      all->push_back(bench.random(Shape{tokens, kHidden}, kActivations));
    }
    y.emplace_back(kActivations, Shape{tokens, kHidden}, context.device());
  }
  const auto call = [&](int i) {
    const auto set = static_cast<size_t>(i);
    rms_norm(context, {x[set], residual[set], norm, y[set]});
  };
  const std::string what = fmt::format("rms_norm with residual, {} tokens", tokens);
  const std::vector<int64_t> rows = spread(tokens, 16);
  const Tensor x_host = take_rows(context, x[0], rows);
  Tensor h = take_rows(context, residual[0], rows);
  const Tensor weight_host = take(context, norm);
  Tensor expected(DType::kF32, h.shape());
  rms_norm_reference({x_host, h, weight_host, expected});
  call(0);
  verify(what, take_rows(context, y[0], rows), expected, kRounding);
  verify(what + ", residual", take_rows(context, residual[0], rows), h, kRounding);
  bench.time(what, {static_cast<double>(tokens * kHidden) * (2 + 2 + 2 + 2)}, call);
}

void gates(CudaBench& bench, int64_t tokens) {
  Context& context = bench.context();
  std::vector<Tensor> gate, up, y;
  for (int i = 0; i < kSets; ++i) {
    for (auto* all : {&gate, &up}) {
      all->push_back(bench.random(Shape{tokens, kFeedForward}, kActivations));
    }
    y.emplace_back(kActivations, gate[0].shape(), context.device());
  }
  const auto call = [&](int i) {
    const auto set = static_cast<size_t>(i);
    swiglu(context, {gate[set], up[set], y[set]});
  };
  const std::string what = fmt::format("swiglu, {} tokens", tokens);
  const std::vector<int64_t> rows = spread(tokens, 16);
  const Tensor gate_host = take_rows(context, gate[0], rows);
  const Tensor up_host = take_rows(context, up[0], rows);
  Tensor expected(DType::kF32, gate_host.shape());
  swiglu_reference({gate_host, up_host, expected});
  call(0);
  verify(what, take_rows(context, y[0], rows), expected, kRounding);
  bench.time(what, {static_cast<double>(tokens * kFeedForward) * 6}, call);
}

void rotations(CudaBench& bench, int64_t tokens) {
  Context& context = bench.context();
  std::vector<Tensor> x;
  for (int i = 0; i < kSets; ++i) {
    x.push_back(bench.random(Shape{tokens, kHeads, kDim}, kActivations));
  }
  std::vector<int64_t> positions(static_cast<size_t>(tokens));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = 16384 + static_cast<int64_t>(i);
  const auto call = [&](int i) { rope(context, {x[static_cast<size_t>(i)], positions, {}, 1e6}); };
  const std::string what = fmt::format("rope of queries, {} tokens", tokens);
  Tensor expected = take(context, x[0]);
  rope_reference({expected, positions, {}, 1e6});
  call(0);
  verify(what, take(context, x[0]), expected, kRounding);
  bench.time(what, {static_cast<double>(tokens * kHidden) * 4}, call);
}

void element_wise(CudaBench& bench, int64_t tokens) {
  norms(bench, tokens);
  gates(bench, tokens);
  rotations(bench, tokens);
}

// Time includes the wait for the token. 40 tokens stand out by `rise`, as a model's do; without,
// the nucleus is larger than the list that the device makes, and the host chooses among all logits.
void sampling(CudaBench& bench, const char* what, const SamplingSettings& settings,
              float rise = 16.0f) {
  Rng rng(7);
  std::vector<float> logits(static_cast<size_t>(kVocab));
  for (float& x : logits) x = 3.0f * rng.normal();
  for (int i = 0; i < 40; ++i) logits[static_cast<size_t>(rng.below(kVocab))] += rise;
  const ConstTensorView host(logits.data(), Shape{kVocab});
  std::vector<Tensor> sets;
  for (int i = 0; i < kSets; ++i) sets.push_back(to_device(bench.context(), host));
  Sampler sampler(settings, kVocab);
  check(sampler.sample(bench.context(), sets[0]).id == Sampler(settings, kVocab).sample(logits).id,
        "sampling: the device and the CPU differ");
  bench.time(fmt::format("sampling {}, {} logits", what, kVocab), {4.0 * kVocab, 0},
             [&](int i) { sampler.sample(bench.context(), sets[static_cast<size_t>(i)]); });
}

void run(CudaBench& bench, bool) {
  constexpr Matrix kMatrices[] = {{"q", kHidden, kHidden},
                                  {"k", kKvHeads * kDim, kHidden},
                                  {"up", kFeedForward, kHidden},
                                  {"down", kHidden, kFeedForward}};
  for (const int64_t tokens : {1, 8, 16, 32, 8192}) {
    for (const Matrix& matrix : kMatrices) products(bench, tokens, DType::kBF16, matrix);
  }
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    for (const int64_t tokens : {1, 8, 16}) {
      for (const int matrix : {2, 3}) products(bench, tokens, dtype, kMatrices[matrix]);
    }
  }
  products(bench, 8192, DType::kQ4_0, kMatrices[2]);
  gated_products(bench, 8192);
  linear_attention(bench, 8192, kDim);
  linear_attention(bench, 1, kDim);
  linear_attention(bench, 8192, 64);
  linear_attention_inputs(bench, 8192);
  linear_attention_backward(bench, 8192);
  attention(bench, 8192, 16384, kWindow);
  attention(bench, 8192, 0, 0);
  attention(bench, 1, 16384, kWindow);
  attention(bench, 1, 131072, 0);
  attention(bench, 8192, 16384, kWindow, DType::kI8);
  attention(bench, 1, 131072, 0, DType::kI8);
  for (const DType dtype : {kActivations, DType::kI8}) append(bench, 8192, dtype);
  embeddings(bench);
  element_wise(bench, 8192);
  element_wise(bench, 1);
  sampling(bench, "greedy", {.temperature = 0});
  sampling(bench, "top-k 40", {.top_k = 40});
  sampling(bench, "top-p 0.95", {.top_p = 0.95f});
  sampling(bench, "top-p 0.95, large nucleus", {.top_p = 0.95f}, 0.0f);
  sampling(bench, "top-k 40, penalties", {.top_k = 40, .repetition_penalty = 1.1f});
}

}  // namespace
}  // namespace spb::ops

// --tsv FILE: the rows also as tab-separated values.
int main(int count, char** arguments) {
  return spb::ops::run_cuda_bench(count, arguments, false, spb::ops::run);
}
