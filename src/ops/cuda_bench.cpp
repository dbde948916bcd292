// The operators on a CUDA device at the shapes of SpikingBrain-7B: time, floor and share of it.
//
// The floor of an operator is the larger of its bytes over the rate of a large copy and its
// operations over the rate of a large bf16 product, both measured at the start. Inputs take turns
// among sets that together exceed the L2 cache. *_cuda_test.cpp check the same kernels.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward.h"
#include "ops/matmul/gated_matmul.h"
#include "ops/matmul/matmul.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rope/rope.h"
#include "ops/sampling/sampling.h"
#include "ops/softmax_attention/softmax_attention.h"
#include "ops/swiglu/swiglu.h"

namespace spb::ops {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kHidden = 3584;
constexpr int64_t kFeedForward = 18944;
constexpr int64_t kHeads = 28;
constexpr int64_t kKvHeads = 4;
constexpr int64_t kDim = 128;
constexpr int64_t kWindow = 4096;
constexpr int64_t kVocab = 152064;
constexpr int kSets = 3;     // of inputs
constexpr int kRounds = 15;  // the median counts
constexpr int kCalls = 10;   // between two looks at the clock

struct Work {
  double bytes = 0;  // that must be moved
  double flops = 0;  // that must be done
};

class Bench {
 public:
  // Rows are also written to `table`, for programs; nullptr: nowhere.
  Bench(Context& context, std::FILE* table) : context_(context), table_(table) {
    bandwidth_ = 1e30;
    rate_ = 1e30;
    const int64_t bytes = int64_t{1} << 30;
    const Tensor from(DType::kI8, Shape{bytes}, context.device());
    Tensor to(DType::kI8, Shape{bytes}, context.device());
    const double copy = median([&](int) { copy_tensor(context_, from, to); });
    bandwidth_ = 2 * static_cast<double>(bytes) / copy;
    const int64_t n = 8192;
    const MatmulWeight weight = random_weight(DType::kBF16, n, n);
    const Tensor x = random(Shape{n, n});
    Tensor y(DType::kBF16, x.shape(), context.device());
    const MatmulTarget target{&weight, {}, y};
    const double product = median([&](int) { matmul(context_, {x, {&target, 1}}); });
    rate_ = 2.0 * n * n * n / product;
    fmt::print("{}: copies {:.2f} TB/s, bf16 products {:.0f} TFLOP/s\n",
               cuda::device_info(context.device().index).name, bandwidth_ / 1e12, rate_ / 1e12);
    fmt::print("{:<44} {:>10} {:>10} {:>8} {:>9} {:>9}\n", "", "time us", "floor us", "share",
               "TB/s", "TFLOP/s");
    if (table_ != nullptr) fmt::print(table_, "operator\ttime_us\tfloor_us\n");
  }

  void row(const std::string& what, const Work& work, const std::function<void(int)>& call) {
    const double time = median(call);
    const double floor = std::max(work.bytes / bandwidth_, work.flops / rate_);
    fmt::print("{:<44} {:>10.1f} {:>10.1f} {:>7.0f}% {:>9.2f} {:>9.1f}\n", what, time * 1e6,
               floor * 1e6, 100 * floor / time, work.bytes / time / 1e12, work.flops / time / 1e12);
    if (table_ != nullptr)
      fmt::print(table_, "{}\t{:.1f}\t{:.1f}\n", what, time * 1e6, floor * 1e6);
  }

  Tensor random(const Shape& shape, DType dtype = DType::kBF16) {
    Tensor host(dtype, shape);
    std::vector<float> row(static_cast<size_t>(shape.last()));
    for (int64_t i = 0; i < shape.rows(); ++i) {
      // A few rows are drawn, the others repeat them: drawing takes longer than all products.
      if (i < 64) {
        for (float& x : row) x = 0.5f * rng_.normal();
        quantize_row(dtype, row.data(), host.view().row(i), shape.last());
      } else {
        std::copy_n(host.view().row(i % 61), host.view().row_bytes_used(), host.view().row(i));
      }
    }
    return to_device(context_, host);
  }

  MatmulWeight random_weight(DType dtype, int64_t rows, int64_t columns) {
    Tensor host(dtype, Shape{rows, columns});
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t i = 0; i < rows; ++i) {
      if (i < 64) {
        for (float& x : row) x = 0.02f * rng_.normal();
        quantize_row(dtype, row.data(), host.view().row(i), columns);
      } else {
        std::copy_n(host.view().row(i % 61), host.view().row_bytes_used(), host.view().row(i));
      }
    }
    return prepare_matmul_weight(context_, host);
  }

  Context& context() { return context_; }

 private:
  // Seconds of one call.
  double median(const std::function<void(int)>& call) {
    for (int i = 0; i < kSets; ++i) call(i);
    context_.stream().synchronize();
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kCalls; ++i) call(i % kSets);
      context_.stream().synchronize();
      times.push_back(std::chrono::duration<double>(Clock::now() - start).count() / kCalls);
    }
    std::sort(times.begin(), times.end());
    return times[kRounds / 2];
  }

  Context& context_;
  std::FILE* table_;
  Rng rng_{1};
  double bandwidth_;
  double rate_;
};

struct Matrix {
  const char* name;
  int64_t rows;
  int64_t columns;
};

void products(Bench& bench, int64_t tokens, DType dtype, const Matrix& matrix) {
  std::vector<MatmulWeight> weights;
  std::vector<Tensor> x, y;
  for (int i = 0; i < kSets; ++i) {
    weights.push_back(bench.random_weight(dtype, matrix.rows, matrix.columns));
    x.push_back(bench.random(Shape{tokens, matrix.columns}));
    y.emplace_back(DType::kBF16, Shape{tokens, matrix.rows}, bench.context().device());
  }
  const double bytes = static_cast<double>(weights[0].bytes()) +
                       2.0 * static_cast<double>(tokens * (matrix.rows + matrix.columns));
  const double flops = 2.0 * static_cast<double>(tokens * matrix.rows * matrix.columns);
  bench.row(fmt::format("matmul {} {}, {} tokens", matrix.name, name(dtype), tokens),
            {bytes, flops}, [&](int i) {
              const auto set = static_cast<size_t>(i);
              const MatmulTarget target{&weights[set], {}, y[set]};
              matmul(bench.context(), {x[set], {&target, 1}});
            });
}

void gated_products(Bench& bench, int64_t tokens) {
  std::vector<MatmulWeight> gate, up;
  std::vector<Tensor> x, y;
  for (int i = 0; i < kSets; ++i) {
    gate.push_back(bench.random_weight(DType::kBF16, kFeedForward, kHidden));
    up.push_back(bench.random_weight(DType::kBF16, kFeedForward, kHidden));
    x.push_back(bench.random(Shape{tokens, kHidden}));
    y.emplace_back(DType::kBF16, Shape{tokens, kFeedForward}, bench.context().device());
  }
  const auto count = static_cast<double>(tokens);
  const Work work{
      2.0 * static_cast<double>(gate[0].bytes()) + 2.0 * count * (kHidden + kFeedForward),
      4.0 * count * kHidden * kFeedForward};
  bench.row(fmt::format("gated_matmul bf16, {} tokens", tokens), work, [&](int i) {
    const auto set = static_cast<size_t>(i);
    gated_matmul(bench.context(), {x[set], &gate[set], &up[set], y[set]});
  });
}

void attention(Bench& bench, int64_t tokens, int64_t position, int64_t window) {
  const int64_t capacity = window > 0 ? window + tokens - 1 : position + tokens;
  const Shape cache{kKvHeads, capacity, kDim};
  std::vector<Tensor> q, keys, values;
  for (int i = 0; i < kSets; ++i) {
    q.push_back(bench.random(Shape{tokens, kHeads, kDim}));
    keys.push_back(bench.random(cache));
    values.push_back(bench.random(cache));
  }
  double pairs = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t seen = position + i + 1;
    pairs += static_cast<double>(window > 0 ? std::min(window, seen) : seen);
  }
  const double keys_read = static_cast<double>(std::min(
      capacity, window > 0 ? std::min(window + tokens, position + tokens) : position + tokens));
  const Work work{
      4.0 * static_cast<double>(tokens * kHeads * kDim) + 4.0 * keys_read * kKvHeads * kDim,
      4.0 * pairs * kHeads * kDim};
  bench.row(fmt::format("softmax_attention {} tokens at {}, window {}", tokens, position, window),
            work, [&](int i) {
              const auto set = static_cast<size_t>(i);
              SoftmaxAttentionArgs args;
              args.q = q[set], args.o = q[set], args.keys = keys[set], args.values = values[set];
              args.first_position = position;
              args.window_size = window;
              args.scale = 0.0884f;
              softmax_attention(bench.context(), args);
            });
}

void linear_attention(Bench& bench, int64_t tokens) {
  std::vector<Tensor> q, k, v, g, state;
  for (int i = 0; i < kSets; ++i) {
    q.push_back(bench.random(Shape{tokens, kHeads, kDim}));
    k.push_back(bench.random(Shape{tokens, kKvHeads, kDim}));
    v.push_back(bench.random(k[0].shape()));
    g.push_back(bench.random(k[0].shape(), DType::kF32));
    state.emplace_back(DType::kF32, Shape{kKvHeads, kDim, kDim}, bench.context().device());
    gated_linear_attention_inputs(bench.context(), {.q = q.back(), .k = k.back(), .g = g.back()});
  }
  const auto count = static_cast<double>(tokens);
  const double chunk = 64;  // of the chunked form; a single token needs the recurrent one
  const double flops =
      tokens == 1 ? 4.0 * (kHeads + kKvHeads) * kDim * kDim / 2
                  : count * 2 * (kHeads * (kDim * kDim + chunk * kDim) + kKvHeads * kDim * kDim);
  const Work work{count * kDim * (4.0 * kHeads + 4.0 * kKvHeads + 4.0 * kKvHeads) +
                      8.0 * kKvHeads * kDim * kDim,
                  flops};
  bench.row(fmt::format("gated_linear_attention {} tokens", tokens), work, [&](int i) {
    const auto set = static_cast<size_t>(i);
    gated_linear_attention(bench.context(),
                           {q[set], k[set], v[set], g[set], state[set], q[set], 0.0884f});
  });
}

// As training needs it: the gradients alone, and after a forward pass.
void linear_attention_backward(Bench& bench, int64_t tokens) {
  std::vector<Tensor> q, k, v, g, d_o, d_q, d_k, d_v, d_g, state, final_state, d_state;
  const Device& device = bench.context().device();
  for (int i = 0; i < kSets; ++i) {
    q.push_back(bench.random(Shape{tokens, kHeads, kDim}));
    k.push_back(bench.random(Shape{tokens, kKvHeads, kDim}));
    v.push_back(bench.random(k[0].shape()));
    g.push_back(bench.random(k[0].shape(), DType::kF32));
    d_o.push_back(bench.random(q[0].shape()));
    d_q.emplace_back(DType::kBF16, q[0].shape(), device);
    d_k.emplace_back(DType::kBF16, k[0].shape(), device);
    d_v.emplace_back(DType::kBF16, k[0].shape(), device);
    d_g.emplace_back(DType::kF32, k[0].shape(), device);
    for (auto* states : {&state, &final_state, &d_state}) {
      states->emplace_back(DType::kF32, Shape{kKvHeads, kDim, kDim}, device);
      fill_zero(bench.context(), states->back());
    }
    gated_linear_attention_inputs(bench.context(), {.q = q.back(), .k = k.back(), .g = g.back()});
  }
  const auto count = static_cast<double>(tokens);
  const double chunk = 64;
  const auto forward = [&](size_t i) {  // d_q serves as its output
    gated_linear_attention(bench.context(),
                           {q[i], k[i], v[i], g[i], final_state[i], d_q[i], 0.0884f});
  };
  const auto backward = [&](size_t i) {
    GatedLinearAttentionBackwardArgs args{q[i],   k[i],   v[i],   g[i],  d_o[i],
                                          d_q[i], d_k[i], d_v[i], d_g[i]};
    args.state = state[i], args.d_state = d_state[i], args.scale = 0.0884f;
    gated_linear_attention_backward(bench.context(), args);
  };
  const Work work{count * kDim * (6.0 * kHeads + 8.0 * kKvHeads + 8.0 * kKvHeads),
                  count * 2 * kDim * (kHeads * (2 * kDim + 2.5 * chunk) + 3.0 * kKvHeads * kDim)};
  const Work both{work.bytes + count * kDim * (4.0 * kHeads + 8.0 * kKvHeads),
                  work.flops + count * 2 * kDim * (kHeads * (kDim + chunk) + kKvHeads * kDim)};
  bench.row(fmt::format("gated_linear_attention_backward {} tokens", tokens), work,
            [&](int i) { backward(static_cast<size_t>(i)); });
  bench.row(fmt::format("gated_linear_attention and backward {} tokens", tokens), both,
            [&](int i) { forward(static_cast<size_t>(i)), backward(static_cast<size_t>(i)); });
}

void element_wise(Bench& bench, int64_t tokens) {
  std::vector<Tensor> x, residual, y, wide, up;
  Tensor weight = bench.random(Shape{1, kHidden}, DType::kF32);
  const ConstTensorView norm = weight.view().reshaped(Shape{kHidden});
  for (int i = 0; i < kSets; ++i) {
    x.push_back(bench.random(Shape{tokens, kHidden}));
    residual.push_back(bench.random(Shape{tokens, kHidden}));
    y.emplace_back(DType::kBF16, Shape{tokens, kHidden}, bench.context().device());
    wide.push_back(bench.random(Shape{tokens, kFeedForward}));
    up.push_back(bench.random(Shape{tokens, kFeedForward}));
  }
  const auto count = static_cast<double>(tokens);
  bench.row(fmt::format("rms_norm with residual, {} tokens", tokens),
            {count * kHidden * (2 + 2 + 2 + 2), 0}, [&](int i) {
              const auto set = static_cast<size_t>(i);
              rms_norm(bench.context(), {x[set], residual[set], norm, y[set]});
            });
  bench.row(fmt::format("swiglu, {} tokens", tokens), {count * kFeedForward * 6, 0}, [&](int i) {
    const auto set = static_cast<size_t>(i);
    swiglu(bench.context(), {wide[set], up[set], wide[set]});
  });
  std::vector<int64_t> positions(static_cast<size_t>(tokens));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int64_t>(i);
  bench.row(fmt::format("rope of queries, {} tokens", tokens), {count * kHidden * 4, 0},
            [&](int i) {
              const Shape heads{tokens, kHeads, kDim};
              rope(bench.context(),
                   {x[static_cast<size_t>(i)].view().reshaped(heads), positions, {}, 1e6});
            });
}

// Time includes the wait for the token. 40 tokens stand out by `rise`, as a model's do; without,
// the nucleus is larger than the list that the device makes, and the host chooses among all logits.
void sampling(Bench& bench, const char* what, const SamplingSettings& settings,
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
  bench.row(fmt::format("sampling {}, {} logits", what, kVocab), {4.0 * kVocab, 0},
            [&](int i) { sampler.sample(bench.context(), sets[static_cast<size_t>(i)]); });
}

void run(std::FILE* table) {
  Context context(parse_device("cuda"));
  Bench bench(context, table);
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
  linear_attention(bench, 8192);
  linear_attention(bench, 1);
  linear_attention_backward(bench, 8192);
  attention(bench, 8192, 16384, kWindow);
  attention(bench, 8192, 0, 0);
  attention(bench, 1, 16384, kWindow);
  attention(bench, 1, 131072, 0);
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
int main(int argc, char** argv) {
  try {
    const bool tsv = argc == 3 && std::string_view(argv[1]) == "--tsv";
    spb::check(tsv || argc == 1, "{}: expected nothing or --tsv FILE", argv[0]);
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> table(
        tsv ? std::fopen(argv[2], "w") : nullptr, &std::fclose);
    if (tsv && !table) spb::throw_system_error(argv[2]);
    spb::ops::run(table.get());
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
