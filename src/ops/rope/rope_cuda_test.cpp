#include "core/test_cuda.h"
#include "ops/rope/rope.h"
#include "ops/test_row_counts.h"

namespace spb::ops {
namespace {

using RopeCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Dtypes, RopeCuda, test::activation_dtypes(), test::dtype_name);

TEST_P(RopeCuda, AgreesWithTheReferenceFarOut) {
  Rng rng(31);
  for (const RopePairs pairs : {RopePairs::kHalf, RopePairs::kInterleaved}) {
    const Shape shape{5, 7, 128};
    Tensor x = test::random_tensor(rng, shape);
    const std::vector<int64_t> positions = {0, 1, 4095, 1 << 20, 1 << 24};
    Tensor keys = test::random_tensor(rng, Shape{5, 2, 128});
    Tensor x_device = test::put(context(), x, GetParam());
    Tensor keys_device = test::put(context(), keys, GetParam());
    rope_reference({x, positions, {}, 1e6, pairs, keys});
    rope(context(), {x_device, positions, {}, 1e6, pairs, keys_device});
    EXPECT_LE(test::relative_error(test::take(context(), x_device), x),
              test::tolerance(GetParam()));
    EXPECT_LE(test::relative_error(test::take(context(), keys_device), keys),
              test::tolerance(GetParam()));
  }
}

// Consecutive positions, from each of `firsts` on.
std::vector<int64_t> runs(const std::vector<int64_t>& firsts, const std::vector<int64_t>& lengths) {
  std::vector<int64_t> positions;
  for (size_t i = 0; i < firsts.size(); ++i) {
    for (int64_t j = 0; j < lengths[i]; ++j) positions.push_back(firsts[i] + j);
  }
  return positions;
}

void expect_matches_reference(Context& context, DType dtype, std::span<const int64_t> positions,
                              const char* what) {
  Rng rng(33);
  const auto tokens = static_cast<int64_t>(positions.size());
  Tensor x = test::random_tensor(rng, Shape{tokens, 3, 64});
  Tensor x_device = test::put(context, x, dtype);
  rope_reference({x, positions, {}, 1e4});
  rope(context, {x_device, positions, {}, 1e4});
  EXPECT_LE(test::relative_error(test::take(context, x_device), x), test::tolerance(dtype)) << what;
}

TEST_P(RopeCuda, RunsOfConsecutivePositions) {
  const auto expect = [&](const char* what, const std::vector<int64_t>& firsts,
                          const std::vector<int64_t>& lengths) {
    expect_matches_reference(context(), GetParam(), runs(firsts, lengths), what);
  };
  expect("one token", {12345}, {1});
  expect("one run, less than a recorded step", {1000}, {63});
  expect("one run", {0}, {4097});
  expect("one run far out", {100000}, {4097});
  expect("several runs", {7, 1000, 0, 60000, 5}, {1, 63, 4097, 1, 200});
  expect("runs that continue each other", {0, 300, 300}, {300, 10, 20});
  constexpr int64_t kFar = int64_t{1} << 32;  // the upper half of a position counts
  expect("beyond 2^32", {kFar - 200, 3, kFar + 77}, {400, 5, 63});
}

// Queries and keys, at positions that follow each other and at others.
TEST_P(RopeCuda, AnyNumberOfRows) {
  Rng rng(36);
  for (const int64_t rows : kAwkwardRows) {
    for (const int64_t step : {1, -3}) {
      std::vector<int64_t> positions;
      for (int64_t i = 0; i < rows; ++i) positions.push_back(20000 + i * step);
      const RopePairs pairs = step > 0 ? RopePairs::kHalf : RopePairs::kInterleaved;
      Tensor x = test::random_tensor(rng, Shape{rows, 3, 16});
      Tensor keys = test::random_tensor(rng, Shape{rows, 1, 16});
      Tensor x_device = test::put(context(), x, GetParam());
      Tensor keys_device = test::put(context(), keys, GetParam());
      rope_reference({x, positions, {}, 1e4, pairs, keys});
      rope(context(), {x_device, positions, {}, 1e4, pairs, keys_device});
      EXPECT_LE(test::relative_error(test::take(context(), x_device), x),
                test::tolerance(GetParam()))
          << rows << " by " << step;
      EXPECT_LE(test::relative_error(test::take(context(), keys_device), keys),
                test::tolerance(GetParam()))
          << rows << " by " << step;
    }
  }
}

// As many runs as travel with a launch, and one more, which takes another way to the device.
TEST_P(RopeCuda, ManyRuns) {
  for (const int64_t count : {kMaxRecordedRows - 1, kMaxRecordedRows, kMaxRecordedRows + 1}) {
    for (const int64_t length : {1, 2, 5}) {
      std::vector<int64_t> firsts;
      for (int64_t i = 0; i < count; ++i) firsts.push_back((i * 7919) % 10007);
      const std::vector<int64_t> lengths(firsts.size(), length);
      expect_matches_reference(context(), GetParam(), runs(firsts, lengths), "many runs");
    }
  }
}

TEST_P(RopeCuda, PositionsInAnyOrder) {
  for (const int64_t tokens : {100, 1000}) {
    std::vector<int64_t> descending;
    std::vector<int64_t> random;
    Rng rng(34);
    for (int64_t i = 0; i < tokens; ++i) {
      descending.push_back(5000 - i);
      random.push_back(rng.below(100000));
    }
    const std::vector<int64_t> same(static_cast<size_t>(tokens), 4321);
    expect_matches_reference(context(), GetParam(), descending, "descending");
    expect_matches_reference(context(), GetParam(), random, "random");
    expect_matches_reference(context(), GetParam(), same, "the same");
  }
  std::vector<int64_t> far;
  for (int64_t i = 0; i < 300; ++i) far.push_back((int64_t{1} << 32) + 300 - i);
  expect_matches_reference(context(), GetParam(), far, "descending beyond 2^32");
}

TEST_P(RopeCuda, AddsTheAdvanceOfARecordedStep) {
  const std::vector<int64_t> recorded = {5, 6, 7, 900, 2, 2};
  const int64_t steps = 1234;
  std::vector<int64_t> played = recorded;
  for (int64_t& position : played) position += steps;
  Rng rng(35);
  Tensor x = test::random_tensor(rng, Shape{6, 3, 64});
  Tensor x_device = test::put(context(), x, GetParam());
  rope_reference({x, played, {}, 1e4});
  context().set_advance(on_device(context(), std::span(&steps, 1)));
  rope(context(), {x_device, recorded, {}, 1e4});
  EXPECT_LE(test::relative_error(test::take(context(), x_device), x), test::tolerance(GetParam()));
}

TEST_P(RopeCuda, DividesByFactors) {
  Rng rng(32);
  Tensor x = test::random_tensor(rng, Shape{3, 2, 64});
  const std::vector<int64_t> positions = {3, 77, 12345};
  const std::vector<float> values = llama3_rope_factors({}, 5e5, 64);
  Tensor factors(DType::kF32, Shape{32});
  std::copy(values.begin(), values.end(), factors.as<float>());
  Tensor x_device = test::put(context(), x, GetParam());
  const Tensor factors_device = test::put(context(), factors);
  rope_reference({x, positions, factors, 5e5});
  rope(context(), {x_device, positions, factors_device, 5e5});
  EXPECT_LE(test::relative_error(test::take(context(), x_device), x), test::tolerance(GetParam()));
}

}  // namespace
}  // namespace spb::ops
