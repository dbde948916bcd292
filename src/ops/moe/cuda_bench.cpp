// Experts on a CUDA device: verified, then timed.
//
// Many rows: the grouped product beside cuBLASLt, once as one dense product of all rows with one
// weight ("dense"), once as a product for each expert ("each"); the factors are its speed over
// theirs. Few rows: bytes of the chosen experts over time,
// beside the rate of a large copy. Medians; inputs take turns among sets beyond the L2 cache.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "core/error.h"
#include "ops/cuda_bench.h"
#include "ops/moe/grouped_matmul.h"
#include "ops/moe/moe_dispatch.h"

namespace spb::ops {
namespace {

struct Matrices {
  const char* name;
  int64_t experts;
  int64_t outputs;
  int64_t columns;
};

Tensor offsets_on_device(CudaBench& bench, const std::vector<int64_t>& values) {
  Tensor host(DType::kI64, Shape{std::ssize(values)});
  std::copy(values.begin(), values.end(), host.as<int64_t>());
  return bench.on_device(host);
}

std::span<const int64_t> span_of(const Tensor& offsets) {
  return {offsets.as<int64_t>(), static_cast<size_t>(offsets.shape()[0])};
}

// Against the products of one expert after the other; both are rounded to bf16.
void verify(CudaBench& bench, const std::string& what, ConstTensorView y,
            ConstTensorView expected) {
  ops::verify(what, take(bench.context(), y), take(bench.context(), expected), 1e-2);
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
  ManyRows(CudaBench& bench, const Matrices& m, DType dtype)
      : bench_(bench), m_(m), dtype_(dtype), context_(bench.context()) {
    const Tensor stack =
        random_rows(bench.rng(), dtype, Shape{m.experts, m.outputs, m.columns}, 0.02f);
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
    const Tensor device_offsets = offsets_on_device(bench_, offsets);
    const Tensor x =
        to_device(context_, random_rows(bench_.rng(), DType::kBF16, Shape{rows, m_.columns}, 1));
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
    const std::string what =
        fmt::format("grouped_matmul {} {}, {} experts, {} {} rows each", m_.name, name(dtype_),
                    m_.experts, even ? "all" : "about", mean);
    verify(bench_, what, y, expected);
    const double flops = 2.0 * static_cast<double>(rows * m_.outputs * m_.columns);
    double used = 0;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) used += offsets[e + 1] > offsets[e] ? 1 : 0;
    const double bytes = used * static_cast<double>(dense_[0].bytes()) +
                         2.0 * static_cast<double>(rows * (m_.outputs + m_.columns));
    const double own = bench_.median(1, 5, grouped);
    const double one = bench_.median(1, 5, dense);
    const double loop = bench_.median(1, 5, each);
    bench_.row(what, {bytes, flops}, own,
               fmt::format("dense {:.0f} TFLOP/s, {:.2f}x; each {:.0f}, {:.2f}x",
                           flops / one / 1e12, one / own, flops / loop / 1e12, loop / own));
  }

 private:
  CudaBench& bench_;
  Matrices m_;
  DType dtype_;
  Context& context_;
  std::vector<MatmulWeight> stack_, dense_;
};

// One token with `chosen` experts, gate and up in one call.
void few_rows(CudaBench& bench, const Matrices& m, DType dtype, int64_t chosen) {
  Context& context = bench.context();
  const Tensor host =
      random_rows(bench.rng(), dtype, Shape{m.experts, m.outputs, m.columns}, 0.02f);
  const std::vector<MatmulWeight> gate = prepare_expert_weights(context, host, true);
  const std::vector<MatmulWeight> up = prepare_expert_weights(context, host, true);
  const Tensor x =
      to_device(context, random_rows(bench.rng(), DType::kBF16, Shape{chosen, m.columns}, 1));
  Tensor y1(DType::kBF16, Shape{chosen, m.outputs}, context.device());
  Tensor y2(DType::kBF16, y1.shape(), context.device());
  // Call i uses the experts from i * chosen on.
  std::vector<Tensor> offsets;
  for (int64_t first = 0; first + chosen <= m.experts; first += chosen) {
    std::vector<int64_t> values;
    for (int64_t e = 0; e <= m.experts; ++e) {
      values.push_back(std::clamp<int64_t>(e - first, 0, chosen));
    }
    offsets.push_back(offsets_on_device(bench, values));
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
  const std::string what = fmt::format("grouped_matmul gate, {} {}, {} experts, {} rows", m.name,
                                       name(dtype), m.experts, chosen);
  verify(bench, what, y1.view().rows(0, 1), expected);
  verify(bench, what, y2.view().rows(0, 1), expected);
  const double bytes = 2.0 * static_cast<double>(chosen) * static_cast<double>(alone.bytes());
  const double operations = 4.0 * static_cast<double>(chosen * m.outputs * m.columns);
  bench.row(what, {bytes, operations}, bench.median(40, 40, call));
}

void dispatch(CudaBench& bench, int64_t tokens, int64_t experts, int64_t chosen, int64_t columns) {
  Context& context = bench.context();
  const Tensor logits =
      to_device(context, random_rows(bench.rng(), DType::kF32, Shape{tokens, experts}, 1));
  const Tensor x =
      to_device(context, random_rows(bench.rng(), DType::kBF16, Shape{tokens, columns}, 1));
  Tensor y(DType::kBF16, x.shape(), context.device());
  Tensor ids(DType::kI32, Shape{tokens, chosen}, context.device());
  Tensor probabilities(DType::kF32, ids.shape(), context.device());
  Tensor grouped(DType::kBF16, Shape{tokens * chosen, columns}, context.device());
  const MoeChoices choices{ids, probabilities};
  const auto time = [&](const std::function<void(int)>& call) { return bench.median(1, 20, call); };
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
  const auto t = static_cast<double>(tokens);
  const std::string of = fmt::format("{} tokens, {} of {} experts", tokens, chosen, experts);
  bench.row("moe_route " + of, {t * (4.0 * static_cast<double>(experts) + 8 * k)}, route);
  bench.row("moe_plan " + of, {8 * t * k}, plan_time);  // ids read, places of rows written
  bench.row("moe_gather " + of, {(1 + k) * rows}, gather);
  bench.row("moe_scatter " + of, {(2 + k) * rows}, scatter);
}

void run(CudaBench& bench, bool) {
  constexpr Matrices kUp{"up", 8, 18944, 3584};
  constexpr Matrices kDown{"down", 8, 3584, 18944};
  constexpr Matrices kSmallUp{"small up", 64, 1408, 2048};
  constexpr Matrices kSmallDown{"small down", 64, 2048, 1408};
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

// --tsv FILE: the rows also as tab-separated values.
int main(int count, char** arguments) {
  return spb::ops::run_cuda_bench(count, arguments, false, spb::ops::run);
}
