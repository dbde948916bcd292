// Experts on a CUDA device: verified, then timed.
//
// Many rows: the grouped product beside cuBLASLt, once as one dense product of all rows with one
// weight, once as a product for each expert. Few rows: bytes of the chosen experts over time,
// beside the rate of a large copy. Medians; inputs take turns among sets beyond the L2 cache.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/test_tensors.h"
#include "core/transfer.h"
#include "core/widen.h"
#include "ops/moe/grouped_matmul.h"
#include "ops/moe/moe_dispatch.h"

namespace spb::ops {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 9;  // the median counts

struct Matrices {
  const char* name;
  int64_t experts;
  int64_t outputs;
  int64_t columns;
};

Tensor random(Rng& rng, DType dtype, const Shape& shape, float size) {
  constexpr int64_t kDrawn = 61;  // others repeat them: drawing takes longer than all products
  Tensor host(dtype, shape);
  std::vector<float> row(static_cast<size_t>(shape.last()));
  for (int64_t i = 0; i < shape.rows(); ++i) {
    if (i < kDrawn) {
      for (float& x : row) x = size * rng.normal();
      quantize_row(dtype, row.data(), host.view().row(i), shape.last());
    } else {
      std::copy_n(host.view().row(i % kDrawn), host.view().row_bytes_used(), host.view().row(i));
    }
  }
  return host;
}

class Bench {
 public:
  explicit Bench(Context& context) : context_(context) {
    const Tensor from(DType::kI8, Shape{int64_t{1} << 30}, context.device());
    Tensor to(DType::kI8, from.shape(), context.device());
    copies_ = 2.0 * static_cast<double>(from.bytes()) /
              seconds(5, [&](int) { copy_tensor(context_, from, to); });
    const int64_t n = 8192;
    const Tensor x = to_device(context, random(rng_, DType::kBF16, Shape{n, n}, 1));
    Tensor y(DType::kBF16, x.shape(), context.device());
    const MatmulWeight weight =
        prepare_matmul_weight(context, random(rng_, DType::kBF16, x.shape(), 0.02f));
    const MatmulTarget target{&weight, {}, y};
    products_ = 2.0 * n * n * n / seconds(5, [&](int) { matmul(context_, {x, {&target, 1}}); });
    fmt::print("{}: copies {:.2f} TB/s, bf16 products {:.0f} TFLOP/s\n",
               cuda::device_info(context.device().index).name, copies_ / 1e12, products_ / 1e12);
  }

  // Median of a call's time.
  double seconds(int calls, const std::function<void(int)>& call) {
    for (int i = 0; i < 2; ++i) call(i);
    context_.stream().synchronize();
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < calls; ++i) call(i);
      context_.stream().synchronize();
      times.push_back(std::chrono::duration<double>(Clock::now() - start).count() / calls);
    }
    std::sort(times.begin(), times.end());
    return times[kRounds / 2];
  }

  Tensor on_device(const std::vector<int64_t>& values) {
    Tensor host(DType::kI64, Shape{std::ssize(values)});
    std::copy(values.begin(), values.end(), host.as<int64_t>());
    return to_device(context_, host);
  }

  Context& context() { return context_; }
  Rng& rng() { return rng_; }
  double copies() const { return copies_; }
  // The least time for so many bytes and operations.
  double floor(double bytes, double flops) const {
    return std::max(bytes / copies_, flops / products_);
  }

 private:
  Context& context_;
  Rng rng_{1};
  double copies_ = 0;
  double products_ = 0;
};

std::span<const int64_t> span_of(const Tensor& offsets) {
  return {offsets.as<int64_t>(), static_cast<size_t>(offsets.shape()[0])};
}

void verify(Context& context, ConstTensorView y, ConstTensorView expected) {
  Tensor a(y.dtype(), y.shape());
  Tensor b(y.dtype(), y.shape());
  to_host(context, y, a);
  to_host(context, expected, b);
  const Tensor got = widened(a);
  const Tensor want = widened(b);
  double difference = 0;
  double size = 0;
  for (int64_t i = 0; i < want.shape().elements(); ++i) {
    const double x = got.as<float>()[i];
    const double w = want.as<float>()[i];
    difference += (x - w) * (x - w);
    size += w * w;
  }
  check(size > 0 && difference <= 1e-4 * size, "verification: expected {}, got {} off", size,
        difference);
}

// Rows of experts, all alike or falling from twice the mean to none.
std::vector<int64_t> loads(int64_t experts, int64_t mean, bool even) {
  std::vector<int64_t> offsets = {0};
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t load = even || experts == 1 ? mean : 2 * mean * (experts - 1 - e) / (experts - 1);
    offsets.push_back(offsets.back() + load);
  }
  return offsets;
}

class ManyRows {
 public:
  ManyRows(Bench& bench, const Matrices& m, DType dtype)
      : bench_(bench), m_(m), dtype_(dtype), context_(bench.context()) {
    const Tensor stack = random(bench.rng(), dtype, Shape{m.experts, m.outputs, m.columns}, 0.02f);
    stack_ = prepare_expert_weights(context_, stack, true);
    for (int64_t e = 0; e < m.experts; ++e) {
      const Shape one{m.outputs, m.columns};
      const auto view = stack.view().rows(e * m.outputs, m.outputs).reshaped(one);
      dense_.push_back(prepare_matmul_weight(context_, view));
    }
  }

  void row(int64_t mean, bool even) {
    const std::vector<int64_t> offsets = loads(m_.experts, mean, even);
    const int64_t rows = offsets.back();
    const Tensor device_offsets = bench_.on_device(offsets);
    const Tensor x =
        to_device(context_, random(bench_.rng(), DType::kBF16, Shape{rows, m_.columns}, 1));
    Tensor y(DType::kBF16, Shape{rows, m_.outputs}, context_.device());
    Tensor expected(DType::kBF16, y.shape(), context_.device());
    const MatmulWeight* stack[] = {&stack_[0]};
    const GroupedMatmulTarget target{stack, y};
    const auto grouped = [&](int) {
      grouped_matmul(context_, {x, span_of(device_offsets), {&target, 1}});
    };
    const auto each = [&](int) {
      for (size_t e = 0; e + 1 < offsets.size(); ++e) {
        const int64_t count = offsets[e + 1] - offsets[e];
        const MatmulTarget one{&dense_[e], {}, expected.view().rows(offsets[e], count)};
        if (count > 0) matmul(context_, {x.view().rows(offsets[e], count), {&one, 1}});
      }
    };
    const auto dense = [&](int) {
      const MatmulTarget one{&dense_[0], {}, expected};
      matmul(context_, {x, {&one, 1}});
    };
    grouped(0);
    each(0);
    verify(context_, y, expected);
    const double flops = 2.0 * static_cast<double>(rows * m_.outputs * m_.columns);
    const auto rate = [&](const std::function<void(int)>& call) {
      return flops / bench_.seconds(5, call) / 1e12;
    };
    double used = 0;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) used += offsets[e + 1] > offsets[e] ? 1 : 0;
    const double bytes = used * static_cast<double>(dense_[0].bytes()) +
                         2.0 * static_cast<double>(rows * (m_.outputs + m_.columns));
    const double own = rate(grouped);
    const double one = rate(dense);
    const double loop = rate(each);
    fmt::print(
        "{:<10} {:>5} {:>3} experts {:>5} {} rows each {:>8.0f} {:>8.0f} {:>8.0f} {:>8.2f}"
        " {:>8.2f} {:>8.2f}\n",
        m_.name, name(dtype_), m_.experts, mean, even ? "     " : "about", own, one, loop,
        own / one, own / loop, bench_.floor(bytes, flops) * own * 1e12 / flops);
  }

 private:
  Bench& bench_;
  Matrices m_;
  DType dtype_;
  Context& context_;
  std::vector<MatmulWeight> stack_, dense_;
};

// One token with `chosen` experts, gate and up in one call.
void few_rows(Bench& bench, const Matrices& m, DType dtype, int64_t chosen) {
  Context& context = bench.context();
  const Tensor host = random(bench.rng(), dtype, Shape{m.experts, m.outputs, m.columns}, 0.02f);
  const std::vector<MatmulWeight> gate = prepare_expert_weights(context, host, true);
  const std::vector<MatmulWeight> up = prepare_expert_weights(context, host, true);
  const Tensor x =
      to_device(context, random(bench.rng(), DType::kBF16, Shape{chosen, m.columns}, 1));
  Tensor y1(DType::kBF16, Shape{chosen, m.outputs}, context.device());
  Tensor y2(DType::kBF16, y1.shape(), context.device());
  // Call i uses the experts from i * chosen on.
  std::vector<Tensor> offsets;
  for (int64_t first = 0; first + chosen <= m.experts; first += chosen) {
    std::vector<int64_t> values;
    for (int64_t e = 0; e <= m.experts; ++e) {
      values.push_back(std::clamp<int64_t>(e - first, 0, chosen));
    }
    offsets.push_back(bench.on_device(values));
  }
  const MatmulWeight* gates[] = {&gate[0]};
  const MatmulWeight* ups[] = {&up[0]};
  const GroupedMatmulTarget targets[] = {{gates, y1}, {ups, y2}};
  const auto call = [&](int i) {
    const Tensor& set = offsets[static_cast<size_t>(i) % offsets.size()];
    grouped_matmul(context, {x, span_of(set), targets});
  };
  call(0);
  const auto first = host.view().rows(0, m.outputs).reshaped(Shape{m.outputs, m.columns});
  const MatmulWeight alone = prepare_matmul_weight(context, first);
  Tensor expected(DType::kBF16, Shape{1, m.outputs}, context.device());
  const MatmulTarget target{&alone, {}, expected};
  matmul(context, {x.view().rows(0, 1), {&target, 1}});
  verify(context, y1.view().rows(0, 1), expected);
  verify(context, y2.view().rows(0, 1), expected);
  const double time = bench.seconds(40, call);
  const double bytes = 2.0 * static_cast<double>(chosen) * static_cast<double>(alone.bytes());
  fmt::print("{:<10} {:>5} {:>3} experts, {} rows {:>8.1f} us {:>8.2f} TB/s {:>6.0f} % of copies\n",
             m.name, name(dtype), m.experts, chosen, time * 1e6, bytes / time / 1e12,
             100 * bytes / time / bench.copies());
}

void dispatch(Bench& bench, int64_t tokens, int64_t experts, int64_t chosen, int64_t columns) {
  Context& context = bench.context();
  const Tensor logits =
      to_device(context, random(bench.rng(), DType::kF32, Shape{tokens, experts}, 1));
  const Tensor x = to_device(context, random(bench.rng(), DType::kBF16, Shape{tokens, columns}, 1));
  Tensor y(DType::kBF16, x.shape(), context.device());
  Tensor ids(DType::kI32, Shape{tokens, chosen}, context.device());
  Tensor probabilities(DType::kF32, ids.shape(), context.device());
  Tensor grouped(DType::kBF16, Shape{tokens * chosen, columns}, context.device());
  const MoeChoices choices{ids, probabilities};
  const auto time = [&](const std::function<void(int)>& call) {
    return bench.seconds(20, call) * 1e6;
  };
  const double route = time([&](int) { moe_route(context, {logits, choices}); });
  const double plan_time = time([&](int) {
    const Arena::Scope scope(context.arena());
    moe_plan(context, {choices, experts});
  });
  const Arena::Scope scope(context.arena());
  const MoePlan plan = moe_plan(context, {choices, experts});
  const double gather = time([&](int) { moe_gather(context, {plan, x, grouped}); });
  const double scatter = time([&](int) {
    moe_scatter(context, {plan, grouped, probabilities, y});
  });
  const double rows = 2.0 * static_cast<double>(tokens * columns);  // bytes of x
  const auto k = static_cast<double>(chosen);
  fmt::print(
      "{} tokens, {} of {} experts: route {:.1f}, plan {:.1f}, gather {:.1f}, scatter {:.1f} "
      "us; the bytes of the last two at the rate of copies {:.1f}, {:.1f} us\n",
      tokens, chosen, experts, route, plan_time, gather, scatter,
      (1 + k) * rows / bench.copies() * 1e6, (2 + k) * rows / bench.copies() * 1e6);
}

void run() {
  Context context(parse_device("cuda"));
  Bench bench(context);
  constexpr Matrices kUp{"up", 8, 18944, 3584};
  constexpr Matrices kDown{"down", 8, 3584, 18944};
  constexpr Matrices kSmallUp{"small up", 64, 1408, 2048};
  constexpr Matrices kSmallDown{"small down", 64, 2048, 1408};
  fmt::print(
      "TFLOP/s: grouped; cuBLASLt for all rows with one weight, and for each expert; own over "
      "both, and share of the floor of bytes and operations\n");
  for (const Matrices& m : {kUp, kDown, kSmallUp, kSmallDown}) {
    ManyRows many(bench, m, DType::kBF16);
    for (const int64_t rows : {128, 256, 512, 1024}) many.row(rows, true);
    many.row(512, false);
  }
  ManyRows(bench, kUp, DType::kQ4_0).row(1024, true);
  for (const DType dtype : {DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    few_rows(bench, kUp, dtype, 1);
    few_rows(bench, kUp, dtype, 2);
    few_rows(bench, kDown, dtype, 2);
    few_rows(bench, kSmallUp, dtype, 8);
  }
  dispatch(bench, 8192, 8, 2, 3584);
  dispatch(bench, 8192, 64, 8, 2048);
  dispatch(bench, 1, 64, 8, 2048);
}

}  // namespace
}  // namespace spb::ops

int main() {
  try {
    spb::ops::run();
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
