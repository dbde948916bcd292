// bf16 weights that are multiplied where they lie: shapes that fit no tile, and memory that ends
// with the weight.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/test_tensors.h"
#include "ops/matmul/matmul.h"

namespace spb::ops {
namespace {

// A matrix of random bf16 whose last byte is the last one of a page; reading on ends the program.
class GuardedWeight {
 public:
  GuardedWeight(Rng& rng, int64_t rows, int64_t columns, int64_t gap = 0) {
    const int64_t stride = row_bytes(DType::kBF16, columns + gap);
    const int64_t bytes = (rows - 1) * stride + row_bytes(DType::kBF16, columns);
    const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
    const int64_t readable = (bytes + page - 1) / page * page;
    mapped_ = static_cast<size_t>(readable + page);
    void* memory =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory != MAP_FAILED, "test: mmap: expected {} bytes, got none", mapped_);
    memory_ = static_cast<std::byte*>(memory);
    const bool guarded = mprotect(memory_ + readable, static_cast<size_t>(page), PROT_NONE) == 0;
    check(guarded, "test: mprotect: expected a page without access, got an error");
    // Gaps between rows are NaN: nothing may be added from them.
    std::memset(memory_, 0xff, static_cast<size_t>(readable));
    view_ = ConstTensorView(memory_ + readable - bytes, DType::kBF16, Shape{rows, columns}, stride);
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t n = 0; n < rows; ++n) {
      for (float& v : row) v = rng.normal();
      quantize_row(DType::kBF16, row.data(), memory_ + readable - bytes + n * stride, columns);
    }
  }
  ~GuardedWeight() { munmap(memory_, mapped_); }
  GuardedWeight(const GuardedWeight&) = delete;
  GuardedWeight& operator=(const GuardedWeight&) = delete;

  ConstTensorView view() const { return view_; }

 private:
  std::byte* memory_ = nullptr;
  size_t mapped_ = 0;
  ConstTensorView view_;
};

// So many rows of x take the path that expands weights.
constexpr int64_t kManyRows = 512;

class MatmulRowTiles : public ::testing::TestWithParam<Isa> {
 protected:
  test::IsaScope level_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Levels, MatmulRowTiles, ::testing::ValuesIn(test::isa_levels()));

struct Case {
  int64_t m, n, k;
};

// The first rows of a product of many are the same bits, with AMX from another path.
void expect_rows_of_many(Context& context, Rng& rng, const Case& c, int64_t gap, bool biased) {
  const GuardedWeight w(rng, c.n, c.k, gap);
  const MatmulWeight weight = prepare_matmul_weight(context, w.view(), false);
  test::StridedMatrix x(kManyRows, c.k, 3), bias(1, c.n);
  x.fill_normal(rng);
  bias.fill_normal(rng);
  const ConstTensorView added = biased ? ConstTensorView(bias.view()) : ConstTensorView();
  const test::StridedMatrix y(c.m, c.n, 5), want(kManyRows, c.n);
  const MatmulTarget some{&weight, added, y.view()};
  matmul(context, {x.view().rows(0, c.m), {&some, 1}});
  const MatmulTarget many{&weight, added, want.view()};
  matmul(context, {x.view(), {&many, 1}});
  EXPECT_TRUE(test::same_bits(y.view(), want.view().rows(0, c.m)))
      << "M " << c.m << " N " << c.n << " K " << c.k << (biased ? " bias" : "");
  EXPECT_TRUE(y.gaps_untouched()) << "M " << c.m << " N " << c.n << " K " << c.k;
}

TEST_P(MatmulRowTiles, GiveTheBitsOfExpandedWeights) {
  Rng rng(1);
  Context context(3);
  // From so many rows on, every instruction set sums as it does for many.
  const int64_t least = isa() == Isa::kAmx ? 16 : 32;
  for (const int64_t k : {1, 30, 32, 33, 96, 896}) {
    for (const int64_t n : {1, 15, 16, 17, 49, 100}) {
      expect_rows_of_many(context, rng, {least + n % 16, n, k}, n % 3, n % 2 == 1);
    }
  }
  for (const int64_t m : {32, 33, 63, 128, 255, 511}) {
    expect_rows_of_many(context, rng, {m, 50, 70}, 0, m % 2 == 1);
  }
  expect_rows_of_many(context, rng, {35, 65, 2500}, 0, true);  // expanded in several passes
}

TEST_P(MatmulRowTiles, AgreeWithTheReferenceAndReadNothingBehindTheWeight) {
  Rng rng(2);
  Context context(2);
  for (const Case& c :
       {Case{16, 1, 30}, {17, 15, 33}, {31, 17, 896}, {128, 33, 30}, {511, 16, 1}}) {
    const GuardedWeight w(rng, c.n, c.k);
    const MatmulWeight weight = prepare_matmul_weight(context, w.view(), false);
    test::StridedMatrix x(c.m, c.k);
    x.fill_normal(rng);
    const test::StridedMatrix y(c.m, c.n), want(c.m, c.n);
    matmul_reference(x.view(), w.view(), {}, want.view());
    const MatmulTarget target{&weight, {}, y.view()};
    matmul(context, {x.view(), {&target, 1}});
    // Each product is off by up to 2^-9 of itself; products of two normal numbers reach 14.
    const double bound = 0.03 * std::sqrt(static_cast<double>(c.k));
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t n = 0; n < c.n; ++n) {
        ASSERT_NEAR(static_cast<double>(y.at(i, n)), static_cast<double>(want.at(i, n)), bound)
            << "M " << c.m << " N " << c.n << " K " << c.k << " at " << i << ", " << n;
      }
    }
  }
}

TEST_P(MatmulRowTiles, ManyRowsOfWeights) {
  Rng rng(3);
  Context one(1), three(3);
  const GuardedWeight w(rng, 4864, 33);
  const MatmulWeight weight = prepare_matmul_weight(one, w.view(), false);
  test::StridedMatrix x(128, 33);
  x.fill_normal(rng);
  const test::StridedMatrix y(128, 4864, 1), want(128, 4864);
  const MatmulTarget target{&weight, {}, y.view()};
  const MatmulTarget again{&weight, {}, want.view()};
  matmul(three, {x.view(), {&target, 1}});
  matmul(one, {x.view(), {&again, 1}});
  EXPECT_TRUE(test::same_bits(y.view(), want.view()));
  EXPECT_TRUE(y.gaps_untouched());
}

}  // namespace
}  // namespace spb::ops
