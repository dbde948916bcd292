#include "ops/moe/grouped_matmul.h"

#include <gtest/gtest.h>

#include "core/block_formats.h"
#include "core/test_tensors.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;

Tensor random_weight(Rng& rng, DType dtype, int64_t rows, int64_t columns) {
  Tensor weight(dtype, Shape{rows, columns});
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t n = 0; n < rows; ++n) {
    for (float& v : row) v = rng.normal();
    quantize_row(dtype, row.data(), weight.view().row(n), columns);
  }
  return weight;
}

// The weights of some experts, each [rows, columns].
struct Experts {
  Experts(Context& context, Rng& rng, DType dtype, int64_t count, int64_t rows, int64_t columns,
          bool repack = true) {
    for (int64_t e = 0; e < count; ++e) {
      sources.push_back(random_weight(rng, dtype, rows, columns));
      prepared.push_back(prepare_matmul_weight(context, sources.back(), repack));
    }
    for (const MatmulWeight& weight : prepared) weights.push_back(&weight);
  }

  std::vector<Tensor> sources;
  std::vector<MatmulWeight> prepared;
  std::vector<const MatmulWeight*> weights;
};

constexpr int64_t kColumns = 96;

// Segments with the loads that break things: none, one, a few, enough for tiles, everything.
const std::vector<int64_t> kOffsets[] = {{0, 0, 1, 6, 6, 46, 63, 63},
                                         {0, 0, 0, 70, 70, 70, 70, 70},
                                         {0, 1, 2, 3, 4, 5, 6, 7},
                                         {0, 0, 0, 0, 1, 1, 1, 1},
                                         {0, 0, 0, 0, 0, 0, 0, 0}};

class GroupedMatmul : public ::testing::TestWithParam<Isa> {
 protected:
  test::IsaScope level_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Levels, GroupedMatmul, ::testing::ValuesIn(test::isa_levels()));

void expect_loop_over_experts(Context& context, Rng& rng, const Experts& gate, const Experts& up,
                              const std::vector<int64_t>& offsets) {
  StridedMatrix x(offsets.back(), kColumns, 5);
  x.fill_normal(rng);
  const StridedMatrix y1(offsets.back(), 53, 1), y2(offsets.back(), 20, 2);
  const StridedMatrix want1(offsets.back(), 53), want2(offsets.back(), 20);
  const GroupedMatmulTarget targets[] = {{gate.weights, y1.view()}, {up.weights, y2.view()}};
  grouped_matmul(context, {x.view(), offsets, targets});
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const int64_t first = offsets[e];
    const int64_t count = offsets[e + 1] - first;
    if (count == 0) continue;
    const MatmulTarget both[] = {{gate.weights[e], {}, want1.view().rows(first, count)},
                                 {up.weights[e], {}, want2.view().rows(first, count)}};
    matmul(context, {x.view().rows(first, count), both});
  }
  EXPECT_TRUE(test::same_bits(y1.view(), want1.view()));
  EXPECT_TRUE(test::same_bits(y2.view(), want2.view()));
  EXPECT_TRUE(y1.gaps_untouched() && y2.gaps_untouched());
}

TEST_P(GroupedMatmul, IsALoopOverExperts) {
  Rng rng(1);
  Context context(3);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kQ8_0, DType::kQ4_0}) {
    const Experts gate(context, rng, dtype, 7, 53, kColumns);
    const Experts up(context, rng, DType::kQ8_0, 7, 20, kColumns, false);
    for (const std::vector<int64_t>& offsets : kOffsets) {
      expect_loop_over_experts(context, rng, gate, up, offsets);
    }
  }
}

TEST_P(GroupedMatmul, ThreadsAndRepackingGiveTheSameBits) {
  const std::vector<int64_t> offsets = {0, 3, 3, 40, 41};
  for (const DType dtype : {DType::kBF16, DType::kQ8_0, DType::kQ4_1}) {
    Rng rng(2);
    Context one(1);
    const Experts packed(one, rng, dtype, 4, 37, kColumns);
    StridedMatrix x(41, kColumns);
    const StridedMatrix want(41, 37);
    x.fill_normal(rng);
    const GroupedMatmulTarget target{packed.weights, want.view()};
    grouped_matmul(one, {x.view(), offsets, {&target, 1}});
    for (const int threads : {1, 2, 5}) {
      Context context(threads);
      Rng again(2);
      const Experts mapped(context, again, dtype, 4, 37, kColumns, false);
      const StridedMatrix y(41, 37);
      const GroupedMatmulTarget mapped_target{mapped.weights, y.view()};
      grouped_matmul(context, {x.view(), offsets, {&mapped_target, 1}});
      EXPECT_TRUE(test::same_bits(want.view(), y.view())) << name(dtype) << " " << threads;
    }
  }
}

// Weights of experts without rows may be anything: null, undefined, of another shape, unreadable.
TEST_P(GroupedMatmul, NeverTouchesExpertsWithoutRows) {
  Rng rng(3);
  Context context(2);
  const Experts used(context, rng, DType::kQ4_0, 1, 16, 64);
  // No memory is ever at this address.
  const ConstTensorView nowhere(reinterpret_cast<const std::byte*>(64), DType::kQ4_0,
                                Shape{16, 64});
  const MatmulWeight unreadable = prepare_matmul_weight(context, nowhere, false);
  const MatmulWeight undefined;
  const MatmulWeight* weights[] = {nullptr, &undefined, used.weights[0], &unreadable};
  const std::vector<int64_t> offsets = {0, 0, 0, 2, 2};
  StridedMatrix x(2, 64);
  x.fill_normal(rng);
  const StridedMatrix y(2, 16);
  const GroupedMatmulTarget target{weights, y.view()};
  EXPECT_NO_THROW(grouped_matmul(context, {x.view(), offsets, {&target, 1}}));
  for (int64_t n = 0; n < 16; ++n) EXPECT_TRUE(std::isfinite(y.at(1, n)));
}

TEST(GroupedMatmulArguments, WrongOnesAreNamed) {
  using List = std::vector<int64_t>;
  Rng rng(4);
  Context context(1);
  const Experts experts(context, rng, DType::kF32, 2, 3, 8);
  const Experts narrow(context, rng, DType::kF32, 2, 3, 7);
  const StridedMatrix x(4, 8), y(4, 3), shorter(3, 3), wide(4, 11);
  const auto message = [&](const List& offsets, std::span<const MatmulWeight* const> weights,
                           TensorView out) -> std::string {
    try {
      const GroupedMatmulTarget target{weights, out};
      grouped_matmul(context, {x.view(), offsets, {&target, 1}});
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  const MatmulWeight* with_null[] = {experts.weights[0], nullptr};
  const MatmulWeight* mixed[] = {experts.weights[0], narrow.weights[1]};
  EXPECT_EQ(message({0, 4, 4}, with_null, y.view()), "accepted");
  EXPECT_EQ(message({0, 1, 4}, with_null, y.view()),
            "grouped_matmul: target 0: expert 1: expected a prepared weight, got none");
  EXPECT_EQ(message({0, 1, 4}, mixed, y.view()),
            "grouped_matmul: target 0: expert 1: expected a weight [3, 8], got [3, 7]");
  EXPECT_EQ(message({0, 4}, experts.weights, y.view()),
            "grouped_matmul: target 0: expected weights of 1 experts, got 2");
  EXPECT_EQ(message({}, experts.weights, y.view()),
            "grouped_matmul: offsets: expected [E + 1], got none");
  EXPECT_EQ(message({0, 2, 3}, experts.weights, y.view()),
            "grouped_matmul: offsets: expected 0 to 4, got 0 to 3");
  EXPECT_EQ(message({1, 2, 4}, experts.weights, y.view()),
            "grouped_matmul: offsets: expected 0 to 4, got 1 to 4");
  EXPECT_EQ(message({0, 5, 4}, experts.weights, y.view()),
            "grouped_matmul: offsets[2]: expected at least 5, got 4");
  EXPECT_EQ(message({0, -1, 4}, experts.weights, y.view()),
            "grouped_matmul: offsets[1]: expected at least 0, got -1");
  EXPECT_EQ(message({0, 1, 4}, experts.weights, shorter.view()),
            "grouped_matmul: y: expected f32 [4, 3], got f32 [3, 3]");
  EXPECT_EQ(message({0, 1, 4}, experts.weights, TensorView()),
            "grouped_matmul: target 0: y: expected [rows, N], got []");
  EXPECT_EQ(message({0, 1, 4}, experts.weights,
                    TensorView(x.view().data(), DType::kF32, Shape{4, 3}, 32)),
            "grouped_matmul: x and y: expected separate memory, got overlapping");
}

}  // namespace
}  // namespace spb::ops
