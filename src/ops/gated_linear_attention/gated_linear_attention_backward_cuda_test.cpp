// gated_linear_attention_backward on a CUDA device against the reference: any length, batch, gate.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention_backward_test_problem.h"

namespace spb::ops {
namespace {

class GatedLinearAttentionBackwardCuda : public test::OnCuda {
 protected:
  void expect_matches_reference(const BackwardProblem& problem, const std::string& what = {}) {
    const Gradients expected = problem.run_reference();
    for (const DType gate_dtype : {DType::kF32, DType::kBF16}) {
      expect_close(problem, problem.run(context(), GetParam(), gate_dtype), expected,
                   batch_tolerance(GetParam()),
                   fmt::format("{} {} gates {} {}", describe(problem.c), name(GetParam()),
                               name(gate_dtype), what));
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Cuda, GatedLinearAttentionBackwardCuda, test::activation_dtypes(),
                         test::dtype_name);

TEST_P(GatedLinearAttentionBackwardCuda, AnyLength) {
  for (const int64_t dim : {64, 128}) {
    for (const int64_t tokens : {1, 16, 17, 63, 64, 65, 129, 257}) {
      expect_matches_reference(BackwardProblem({{tokens}, 2, tokens % 4 + 1, dim, dim}, 1));
    }
    expect_matches_reference(BackwardProblem({{200}, 1, 7, dim, dim}, 2));
  }
}

TEST_P(GatedLinearAttentionBackwardCuda, LongSequences) {
  expect_matches_reference(BackwardProblem({{4097}, 1, 2, 64, 64}, 3));
  expect_matches_reference(BackwardProblem({{1500}, 1, 2, 128, 128}, 4));
}

TEST_P(GatedLinearAttentionBackwardCuda, AnyWidth) {
  Rng rng(5);
  for (const int64_t key_dim : {1, 7, 33, 64, 100, 128}) {
    for (const int64_t value_dim : {1, 8, 33, 64, 128}) {
      expect_matches_reference(BackwardProblem(
          {{1 + rng.below(90)}, 1 + rng.below(3), 1 + rng.below(9), key_dim, value_dim}, 6));
    }
  }
}

TEST_P(GatedLinearAttentionBackwardCuda, Batches) {
  expect_matches_reference(BackwardProblem({{0, 1, 100, 700, 0, 16, 65}, 2, 3, 128, 128}, 7));
  expect_matches_reference(BackwardProblem({std::vector<int64_t>(70, 5), 1, 2, 64, 64}, 8));
  expect_matches_reference(BackwardProblem({{0, 0}, 2, 2, 64, 64}, 9));
}

TEST_P(GatedLinearAttentionBackwardCuda, BatchOfAwkwardLengths) {
  const BackwardProblem batch({{0, 1, 100, 5000, 63, 65}, 1, 2, 64, 64}, 16);
  expect_matches_reference(batch);
  const Gradients together = batch.run(context(), GetParam());
  for (size_t i = 0; i < batch.c.lengths.size(); ++i) {
    expect_same_alone(batch, together, i, alone(batch, i).run(context(), GetParam()));
  }
}

TEST_P(GatedLinearAttentionBackwardCuda, GatesOfAnyStrength) {
  Rng rng(10);
  for (const auto& [what, gate] : gates_of_any_strength(rng)) {
    for (const int64_t dim : {64, 128}) {
      expect_matches_reference(BackwardProblem({{150, 70}, 2, 2, dim, dim}, 11, gate), what);
    }
  }
  // Chunks that are steep among chunks that are not.
  int64_t calls = 0;
  const GateSource mixed = [&] { return ++calls / 20000 % 2 == 0 ? -0.1f : -30.0f; };
  expect_matches_reference(BackwardProblem({{600}, 1, 2, 64, 64}, 12, mixed), "mixed");
}

TEST_P(GatedLinearAttentionBackwardCuda, ASequenceGivesTheSameBitsAloneAndInABatch) {
  for (const int64_t dim : {64, 128}) {
    const BackwardProblem batch({{1, 300, 0, 64, 100}, 2, 2, dim, dim}, 13);
    const Gradients together = batch.run(context(), GetParam());
    for (size_t i = 0; i < batch.c.lengths.size(); ++i) {
      expect_same_alone(batch, together, i, alone(batch, i).run(context(), GetParam()));
    }
  }
}

TEST_P(GatedLinearAttentionBackwardCuda, TheSameBitsAgain) {
  for (const int64_t dim : {64, 128}) {
    const BackwardProblem problem({{3, 500, 1}, 2, 7, dim, dim}, 14);
    expect_same(problem.run(context(), GetParam()), problem.run(context(), GetParam()), "again");
  }
}

TEST_P(GatedLinearAttentionBackwardCuda, StatesMayBeAbsent) {
  BackwardProblem problem({{100, 0}, 2, 2, 64, 64}, 15);
  for (Tensor& d_final : problem.d_finals) {
    std::fill_n(d_final.as<float>(), d_final.shape().elements(), 0.0f);
  }
  const Gradients expected = problem.run(context(), GetParam());
  problem.with_finals = false;
  expect_same(problem.run(context(), GetParam()), expected, "no final gradient");
}

}  // namespace
}  // namespace spb::ops
