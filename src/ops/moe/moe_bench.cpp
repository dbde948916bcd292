// Verifies, then times. Counters:
//   of_dense      rate of the grouped product over that of one product with as many rows
//   of_plain      time of the same products without router and dispatch over the time with them
//   MB/token      bytes of a mapped file that one decoded token brought into memory, page by page
//   model         the same from the sizes of the chosen and shared experts
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "ops/moe/moe_test_ffn.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;
using test_moe::MoeFfn;
using test_moe::Sizes;

Context& context() {
  static Context instance;
  return instance;
}

template <typename Body>
double seconds(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Tensor random_weights(Rng& rng, DType dtype, int64_t rows, int64_t columns) {
  Tensor w(dtype, Shape{rows, columns});
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t n = 0; n < rows; ++n) {
    if (n >= 37) {
      std::memcpy(w.view().row(n), w.view().row(n % 37),
                  static_cast<size_t>(row_bytes(dtype, columns)));
      continue;
    }
    for (float& v : row) v = rng.normal();
    quantize_row(dtype, row.data(), w.view().row(n), columns);
  }
  return w;
}

// `per_expert` rows for each of 16 experts, beside one product of all rows with one weight.
void grouped(benchmark::State& state, DType dtype, int64_t per_expert, int64_t n, int64_t k) {
  constexpr int64_t kExperts = 16;
  Rng rng(1);
  std::vector<Tensor> sources;
  std::vector<MatmulWeight> prepared;
  std::vector<const MatmulWeight*> weights;
  std::vector<int64_t> offsets = {0};
  for (int64_t e = 0; e < kExperts; ++e) {
    sources.push_back(random_weights(rng, dtype, n, k));
    prepared.push_back(prepare_matmul_weight(context(), sources.back()));
    offsets.push_back((e + 1) * per_expert);
  }
  for (const MatmulWeight& weight : prepared) weights.push_back(&weight);
  const int64_t rows = offsets.back();
  StridedMatrix x(rows, k);
  x.fill_normal(rng);
  const StridedMatrix y(rows, n), one_y(rows, n), want(per_expert, n);
  const GroupedMatmulTarget target{weights, y.view()};
  const MatmulTarget one{&prepared[0], {}, one_y.view()};
  const auto run_grouped = [&] { grouped_matmul(context(), {x.view(), offsets, {&target, 1}}); };
  const auto run_dense = [&] { matmul(context(), {x.view(), {&one, 1}}); };
  run_grouped();
  run_dense();
  const MatmulTarget last{weights[kExperts - 1], {}, want.view()};
  matmul(context(), {x.view().rows(rows - per_expert, per_expert), {&last, 1}});
  if (!test::same_bits(want.view(), y.view().rows(rows - per_expert, per_expert))) {
    return state.SkipWithError("differs from a product of the expert alone");
  }
  double best = 1e9, best_dense = 1e9;
  for (auto _ : state) {
    const double time = seconds(run_grouped);
    state.SetIterationTime(time);
    best = std::min(best, time);
    best_dense = std::min(best_dense, seconds(run_dense));
  }
  const double giga =
      2e-9 * static_cast<double>(rows) * static_cast<double>(n) * static_cast<double>(k);
  state.counters["GFLOP/s"] = giga / best;
  state.counters["dense_GFLOP/s"] = giga / best_dense;
  state.counters["of_dense"] = best_dense / best;
}

bool agrees(const MoeFfn& ffn, const StridedMatrix& x) {
  const StridedMatrix y(x.view().shape()[0], x.view().shape()[1]), want = y.clone();
  ffn.run(context(), x.view(), y.view());
  ffn.reference(x.view(), want.view());
  return test::largest_row_error(y.view(), want.view()) < 5e-2;
}

// One token through a router of 16 experts, top 1, beside the same three products alone.
void decode(benchmark::State& state, const Sizes& sizes) {
  const MoeFfn ffn(context(), 2, sizes);
  Rng rng(3);
  StridedMatrix x(1, sizes.hidden);
  x.fill_normal(rng);
  if (!agrees(ffn, x)) return state.SkipWithError("differs from the reference");
  const StridedMatrix y(1, sizes.hidden);
  double best = 1e9, best_plain = 1e9;
  for (auto _ : state) {
    x.fill_normal(rng);  // other experts, so that caches hold none of them
    const double time = seconds([&] { ffn.run(context(), x.view(), y.view()); });
    state.SetIterationTime(time);
    best = std::min(best, time);
    const int64_t e = rng.below(sizes.num_experts);
    best_plain =
        std::min(best_plain, seconds([&] { ffn.run_expert(context(), e, x.view(), y.view()); }));
  }
  state.counters["us"] = best * 1e6;
  state.counters["plain_us"] = best_plain * 1e6;
  state.counters["of_plain"] = best_plain / best;
  state.counters["GB/s"] = static_cast<double>(ffn.active_bytes()) / best * 1e-9;
}

// A file without a name, mapped page by page: the kernel reads no page ahead.
class MappedScratch {
 public:
  explicit MappedScratch(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    char path[] = "moe_bench_XXXXXX";
    file_ = mkstemp(path);
    if (file_ < 0 || unlink(path) != 0 || ftruncate(file_, bytes) != 0) {
      throw_system_error("moe_bench: scratch file");
    }
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (p == MAP_FAILED) throw_system_error("moe_bench: mmap");
    memory_ = static_cast<std::byte*>(p);
    madvise(memory_, bytes_, MADV_RANDOM);
  }
  ~MappedScratch() {
    munmap(memory_, bytes_);
    close(file_);
  }
  MappedScratch(const MappedScratch&) = delete;
  MappedScratch& operator=(const MappedScratch&) = delete;

  std::byte* data() const { return memory_; }
  void evict() const {
    msync(memory_, bytes_, MS_SYNC);
    madvise(memory_, bytes_, MADV_DONTNEED);
    posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED);
  }
  int64_t resident_bytes() const {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    std::vector<unsigned char> pages((bytes_ + page - 1) / page);
    if (mincore(memory_, bytes_, pages.data()) != 0) throw_system_error("moe_bench: mincore");
    int64_t count = 0;
    for (const unsigned char p : pages) count += p & 1;
    return count * static_cast<int64_t>(page);
  }

 private:
  size_t bytes_;
  int file_ = -1;
  std::byte* memory_ = nullptr;
};

// What a decoded token reads of a file that holds all experts.
void decode_from_file(benchmark::State& state, Sizes sizes) {
  sizes.repack = false;
  const MappedScratch file(sizes.bytes());
  const MoeFfn ffn(context(), 2, sizes, file.data());
  Rng rng(3);
  StridedMatrix x(1, sizes.hidden);
  x.fill_normal(rng);
  if (!agrees(ffn, x)) return state.SkipWithError("differs from the reference");
  const StridedMatrix y(1, sizes.hidden);
  double read = 0;
  for (auto _ : state) {
    state.PauseTiming();
    file.evict();
    const int64_t before = file.resident_bytes();
    x.fill_normal(rng);
    state.ResumeTiming();
    ffn.run(context(), x.view(), y.view());
    state.PauseTiming();
    read += static_cast<double>(file.resident_bytes() - before);
    state.ResumeTiming();
  }
  const double per_token = read / static_cast<double>(state.iterations());
  state.counters["MB/token"] = per_token * 1e-6;
  state.counters["model"] = static_cast<double>(ffn.active_bytes()) * 1e-6;
  state.counters["of_model"] = per_token / static_cast<double>(ffn.active_bytes());
  state.counters["file_MB"] = static_cast<double>(sizes.bytes()) * 1e-6;
}

void register_all() {
  for (const DType dtype : {DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kF32}) {
    const std::string type(name(dtype));
    for (const int64_t per_expert : {16, 128, 512}) {
      const auto body = [=](benchmark::State& s) { grouped(s, dtype, per_expert, 4864, 896); };
      benchmark::RegisterBenchmark(fmt::format("grouped/{}/{}", type, per_expert).c_str(), body)
          ->UseManualTime();
    }
    const Sizes sizes{.hidden = 896,
                      .intermediate = 4864,
                      .num_experts = 16,
                      .experts_per_token = 1,
                      .shared_experts = 0,
                      .dtype = dtype,
                      .distinct_rows = 37};
    for (const bool repack : {true, false}) {
      Sizes kept = sizes;
      kept.repack = repack;
      const auto body = [=](benchmark::State& s) { decode(s, kept); };
      benchmark::RegisterBenchmark(
          fmt::format("decode/{}/{}", type, repack ? "repacked" : "mapped").c_str(), body)
          ->UseManualTime();
    }
    const auto body = [=](benchmark::State& s) { decode_from_file(s, sizes); };
    benchmark::RegisterBenchmark(fmt::format("bytes/{}", type).c_str(), body)->Iterations(5);
  }
}

}  // namespace
}  // namespace spb::ops

int main(int argc, char** argv) {
  spb::ops::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
