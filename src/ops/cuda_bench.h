// What the benches of a CUDA device share: ceilings, medians, rows of a table, and the comparison
// with references that comes before any time. Not part of the library.
//
// The floor of a row is the larger of its bytes over the rate of a large copy and its operations
// over the rate of a large bf16 product, both measured at the start; its share is floor / time.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "core/widen.h"
#include "ops/matmul/matmul.h"

namespace spb::ops {

struct Work {
  double bytes = 0;       // that must be moved
  double operations = 0;  // that must be done
  double rate = 1;        // of the operations, as a multiple of that of bf16: 2 for int8
};

// Host tensor of normal numbers; `silence` of them are 0. A few rows are drawn, the others repeat
// them: drawing takes longer than all products.
inline Tensor random_rows(Rng& rng, DType dtype, const Shape& shape, float size,
                          double silence = 0) {
  constexpr int64_t kDrawn = 61;
  Tensor host(dtype, shape);
  std::vector<float> row(static_cast<size_t>(shape.last()));
  for (int64_t i = 0; i < shape.rows(); ++i) {
    std::byte* to = host.view().row(i);
    if (i >= kDrawn) {
      std::copy_n(host.view().row(i % kDrawn), host.view().row_bytes_used(), to);
      continue;
    }
    for (float& x : row) {
      x = silence > 0 && rng.uniform() < silence ? 0.0f : size * rng.normal();
    }
    quantize_row(dtype, row.data(), to, shape.last());
  }
  return host;
}

// Rows of a device tensor as a host tensor of that shape; absent where the tensor is.
inline Tensor part_on_host(Context& context, const Tensor& from, int64_t first, int64_t count,
                           const Shape& shape) {
  if (!from.view().defined()) return {};
  Tensor host(from.dtype(), shape);
  to_host(context, from.view().rows(first, count),
          host.view().reshaped(Shape{count, shape.last()}));
  return host;
}

class CudaBench {
 public:
  static constexpr int kSets = 3;  // of inputs that take turns, beyond the L2 cache together

  // Rows are also written to `table`, for programs; nullptr: nowhere.
  CudaBench(Context& context, std::FILE* table) : context_(context), table_(table) {
    const Tensor from(DType::kI8, Shape{int64_t{1} << 30}, context.device());
    Tensor to(DType::kI8, from.shape(), context.device());
    copies_ = 2.0 * static_cast<double>(from.bytes()) /
              median(1, 5, [&](int) { copy_tensor(context_, from, to); });
    const int64_t n = 8192;
    const Tensor x = on_device(random_rows(rng_, DType::kBF16, Shape{n, n}, 0.5f));
    Tensor y(DType::kBF16, x.shape(), context.device());
    const MatmulWeight weight =
        prepare_matmul_weight(context, random_rows(rng_, DType::kBF16, x.shape(), 0.02f));
    const MatmulTarget target{&weight, {}, y};
    products_ = 2.0 * n * n * n / median(1, 5, [&](int) { matmul(context_, {x, {&target, 1}}); });
    fmt::print("{}: copies {:.2f} TB/s, bf16 products {:.0f} TFLOP/s\n",
               cuda::device_info(context.device().index).name, copies_ / 1e12, products_ / 1e12);
    fmt::print("{:<52} {:>10} {:>10} {:>8} {:>9} {:>9}\n", "", "time us", "floor us", "share",
               "TB/s", "TFLOP/s");
    if (table_ == nullptr) return;
    fmt::print(table_, "operator\ttime_us\tbytes\toperations\tfloor_us\tshare\ttb_s\ttflop_s\n");
  }

  // Seconds of one call; call i gets i modulo `sets`.
  double median(int sets, int calls, const std::function<void(int)>& call) {
    constexpr int kRounds = 11;
    for (int i = 0; i < sets; ++i) call(i);
    context_.stream().synchronize();
    std::vector<double> times;
    for (int round = 0; round < kRounds; ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < calls; ++i) call(i % sets);
      context_.stream().synchronize();
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      times.push_back(time.count() / calls);
    }
    std::sort(times.begin(), times.end());
    return times[kRounds / 2];
  }

  // `note` stands at the end of the printed line.
  void row(const std::string& what, const Work& work, double time, const std::string& note = "") {
    const double floor = std::max(work.bytes / copies_, work.operations / work.rate / products_);
    const double moved = work.bytes / time / 1e12;
    const double done = work.operations / time / 1e12;
    fmt::print("{:<52} {:>10.1f} {:>10.1f} {:>7.0f}% {:>9.2f} {:>9.1f} {}\n", what, time * 1e6,
               floor * 1e6, 100 * floor / time, moved, done, note);
    if (table_ == nullptr) return;
    fmt::print(table_, "{}\t{:.1f}\t{:.0f}\t{:.0f}\t{:.1f}\t{:.3f}\t{:.3f}\t{:.1f}\n", what,
               time * 1e6, work.bytes, work.operations, floor * 1e6, floor / time, moved, done);
  }

  void time(const std::string& what, const Work& work, const std::function<void(int)>& call) {
    row(what, work, median(kSets, 10, call));
  }

  Tensor on_device(const Tensor& host) { return to_device(context_, host); }
  Tensor random(const Shape& shape, DType dtype = DType::kBF16) {
    return on_device(random_rows(rng_, dtype, shape, 0.5f));
  }
  Context& context() { return context_; }
  Rng& rng() { return rng_; }

 private:
  Context& context_;
  std::FILE* table_;
  Rng rng_{1};
  double copies_ = 1e30;
  double products_ = 1e30;
};

// `count` of `all` indices, evenly spread from the first to the last.
inline std::vector<int64_t> spread(int64_t all, int64_t count) {
  if (all <= count) count = all;
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < count; ++i) {
    indices.push_back(count == 1 ? 0 : i * (all - 1) / (count - 1));
  }
  return indices;
}

// Rows of a device tensor as f32 on the host.
inline Tensor take_rows(Context& context, ConstTensorView from, const std::vector<int64_t>& rows) {
  Tensor host(from.dtype(), Shape{std::ssize(rows), from.shape().last()});
  for (int64_t i = 0; i < std::ssize(rows); ++i) {
    to_host(context, from.rows(rows[static_cast<size_t>(i)], 1), host.view().rows(i, 1));
  }
  return widened(host);
}

inline Tensor take(Context& context, ConstTensorView from) {
  Tensor host(from.dtype(), from.shape());
  to_host(context, from, host);
  return widened(host);
}

// Heads [first, first + count) of a device tensor [L, H, D] as f32 on the host.
inline Tensor take_heads(Context& context, ConstTensorView from, int64_t first, int64_t count) {
  const Tensor all = take(context, from);
  const Shape& shape = from.shape();
  Tensor some(DType::kF32, Shape{shape[0], count, shape[2]});
  for (int64_t t = 0; t < shape[0]; ++t) {
    std::copy_n(all.view().row_as<float>(t * shape[1] + first), count * shape[2],
                some.view().row_as<float>(t * count));
  }
  return some;
}

inline Tensor take_columns(const Tensor& from, const std::vector<int64_t>& columns) {
  Tensor some(DType::kF32, Shape{from.shape().rows(), std::ssize(columns)});
  for (int64_t i = 0; i < some.shape()[0]; ++i) {
    for (size_t c = 0; c < columns.size(); ++c) {
      some.view().row_as<float>(i)[c] = from.view().row_as<float>(i)[columns[c]];
    }
  }
  return some;
}

// ||got - expected|| over ||expected||, or over `scale` where that is larger.
inline void verify(const std::string& what, const Tensor& got, const Tensor& expected,
                   double tolerance, double scale = 0) {
  check(got.shape().elements() == expected.shape().elements(), "{}: expected {} numbers, got {}",
        what, expected.shape().elements(), got.shape().elements());
  double difference = 0;
  double size = 0;
  for (int64_t i = 0; i < expected.shape().elements(); ++i) {
    const double x = got.as<float>()[i];
    const double y = expected.as<float>()[i];
    difference += (x - y) * (x - y);
    size += y * y;
  }
  const double error = std::sqrt(difference) / std::max({std::sqrt(size), scale, 1e-30});
  check(size > 0 && error <= tolerance,  // false for NaN, too
        "{}: expected a reference that is not 0 and a relative error of at most {}, got {} and {}",
        what, tolerance, std::sqrt(size), error);
}

// main of a bench: [--tsv FILE] and, where `has_quick`, [--quick].
inline int run_cuda_bench(int count, char** arguments, bool has_quick,
                          const std::function<void(CudaBench&, bool quick)>& run) {
  try {
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> table(nullptr, &std::fclose);
    bool quick = false;
    for (int i = 1; i < count; ++i) {
      const std::string_view argument = arguments[i];
      quick = quick || (has_quick && argument == "--quick");
      if (has_quick && argument == "--quick") continue;
      check(argument == "--tsv" && i + 1 < count, "{}: expected --tsv FILE{}, got {}", arguments[0],
            has_quick ? " or --quick" : "", argument);
      table.reset(std::fopen(arguments[++i], "w"));
      if (!table) throw_system_error(arguments[i]);
    }
    Context context(parse_device("cuda"));
    CudaBench bench(context, table.get());
    run(bench, quick);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace spb::ops
