// The reference against finite differences and an identity; every CPU path against the reference.
#include "ops/gated_linear_attention/gated_linear_attention_backward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention_backward_test_problem.h"

namespace spb::ops {
namespace {

using test::contents;

// The scalar whose gradients d_o and d_finals make: their dot product with what comes out, which
// is taken as a difference of two runs, for each run alone would round away what differs.
double dot_difference(const Tensor& weights, const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < weights.shape().elements(); ++i) {
    sum += double{weights.as<float>()[i]} * (double{a.as<float>()[i]} - double{b.as<float>()[i]});
  }
  return sum;
}

double central_difference(const BackwardProblem& problem, float& x, float step) {
  const float middle = x;
  const float high = middle + step;
  const float low = middle - step;
  x = high;
  const BatchOutputs above = problem.run_forward_reference();
  x = low;
  const BatchOutputs below = problem.run_forward_reference();
  x = middle;
  double sum = dot_difference(problem.d_o, above.o, below.o);
  for (size_t i = 0; i < problem.d_finals.size(); ++i) {
    sum += dot_difference(problem.d_finals[i], above.states[i], below.states[i]);
  }
  return sum / (double{high} - double{low});
}

void expect_differences(const BackwardProblem& problem, Tensor& input, const Tensor& gradient,
                        float step, double tolerance, const std::string& what) {
  Tensor differences(DType::kF32, input.shape());
  for (int64_t i = 0; i < input.shape().elements(); ++i) {
    differences.as<float>()[i] =
        static_cast<float>(central_difference(problem, input.as<float>()[i], step));
  }
  EXPECT_LE(test::relative_error(gradient, differences), tolerance) << what;
}

// The step is small for gates alone: all else enters linearly, and what remains is that the forward
// pass rounds what it returns to f32; a state that fades leaves little beside that.
TEST(GatedLinearAttentionBackwardReference, AgreesWithCentralDifferences) {
  Rng rng(2);
  const std::vector<GateSource> gates = {[&] { return -rng.uniform(0.03f, 0.5f); },
                                         [&] { return -rng.uniform(0.03f, 4.0f); },
                                         [&] { return rng.below(5) == 0 ? -50.0f : -0.1f; }};
  for (const GateSource& gate : gates) {
    BackwardProblem problem({{7, 0, 1, 4}, 2, 3, 3, 5}, 3, gate);
    const Gradients expected = problem.run_reference();
    expect_differences(problem, problem.q, expected.d_q, 0.5f, 1e-6, "q");
    expect_differences(problem, problem.k, expected.d_k, 0.5f, 1e-6, "k");
    expect_differences(problem, problem.v, expected.d_v, 0.5f, 1e-6, "v");
    expect_differences(problem, problem.g, expected.d_g, 0x1p-8f, 1e-4, "g");
    for (size_t i = 0; i < problem.states.size(); ++i) {
      expect_differences(problem, problem.states[i], expected.d_states[i], 0.5f, 2e-6,
                         fmt::format("state {}", i));
    }
  }
}

// Below the floor nothing depends on a gate.
TEST(GatedLinearAttentionBackwardReference, FlooredGatesHaveNoGradient) {
  const BackwardProblem problem({{20}, 1, 2, 4, 4}, 4, [] { return -100.0f; });
  EXPECT_EQ(norm(problem.run_reference().d_g), 0);
}

const float* row(const Tensor& tensor, int64_t index) {
  return tensor.as<float>() + index * tensor.shape().last();
}

// dg_t = rowsum(S_L . dS_L) + sum over i >= t of (q_i . dq_i - k_i . dk_i).
void expect_identity(const BackwardProblem& problem, const std::string& what) {
  const Gradients got = problem.run_reference();
  const BatchOutputs forward = problem.run_forward_reference();
  const BatchCase& c = problem.c;
  Tensor expected(DType::kF32, got.d_g.shape());
  for (int64_t channel = 0; channel < c.kv_heads * c.key_dim; ++channel) {
    double sum = 0;
    for (int64_t d = 0; d < c.value_dim; ++d) {
      sum += double{row(forward.states[0], channel)[d]} * row(problem.d_finals[0], channel)[d];
    }
    const int64_t at = channel % c.key_dim;
    for (int64_t t = c.lengths[0] - 1; t >= 0; --t) {
      const int64_t key = t * c.kv_heads + channel / c.key_dim;
      sum -= double{row(problem.k, key)[at]} * row(got.d_k, key)[at];
      for (int64_t h = key * c.group; h < (key + 1) * c.group; ++h) {
        sum += double{row(problem.q, h)[at]} * row(got.d_q, h)[at];
      }
      expected.as<float>()[key * c.key_dim + at] = static_cast<float>(sum);
    }
  }
  EXPECT_LE(test::relative_error(got.d_g, expected), 2e-6) << what;
}

TEST(GatedLinearAttentionBackwardReference, GradientsOfGatesObeyTheIdentity) {
  for (const int64_t tokens : {1, 63, 64, 65, 257}) {
    for (const int64_t dim : {64, 128}) {
      const BatchCase c{{tokens}, 1, 2, dim, 64};
      expect_identity(BackwardProblem(c, 5), describe(c));
    }
  }
  Rng rng(6);
  const std::vector<GateSource> gates = {[] { return 0.0f; }, [] { return -1e-7f; },
                                         [&] { return -rng.uniform(0.0f, 3.0f); }};
  for (const GateSource& gate : gates) {
    expect_identity(BackwardProblem({{100}, 2, 3, 16, 8}, 7, gate), "gates");
  }
}

class GatedLinearAttentionBackward : public test::EveryIsa {
 protected:
  void expect_matches_reference(const BackwardProblem& problem, const std::string& what = {}) {
    expect_close(problem, problem.run(context_), problem.run_reference(), 1e-5,
                 fmt::format("{} {} {}", describe(problem.c), name(isa()), what));
  }
  Context context_{2};
};

INSTANTIATE_TEST_SUITE_P(Cpu, GatedLinearAttentionBackward, testing::ValuesIn(test::isa_levels()),
                         test::isa_name);

TEST_P(GatedLinearAttentionBackward, AnyLength) {
  for (const int64_t tokens : {1, 2, 31, 32, 33, 63, 65, 257}) {
    for (const int64_t group : {1, 3}) {
      expect_matches_reference(BackwardProblem({{tokens}, 2, group, 64, 32}, 8));
    }
  }
  expect_matches_reference(BackwardProblem({{257}, 1, 7, 128, 128}, 9));
}

TEST_P(GatedLinearAttentionBackward, AnyWidth) {
  Rng rng(10);
  for (const int64_t key_dim : {1, 7, 16, 33, 100}) {
    for (const int64_t value_dim : {1, 3, 8, 33, 64}) {
      expect_matches_reference(BackwardProblem(
          {{1 + rng.below(40)}, 1 + rng.below(3), 1 + rng.below(9), key_dim, value_dim}, 11));
    }
  }
}

TEST_P(GatedLinearAttentionBackward, Batches) {
  expect_matches_reference(BackwardProblem({{0, 1, 100, 0, 16, 33}, 2, 2, 20, 24}, 12));
  expect_matches_reference(BackwardProblem({{0, 0}, 2, 2, 8, 8}, 13));
}

TEST_P(GatedLinearAttentionBackward, GatesOfAnyStrength) {
  Rng rng(14);
  for (const auto& [what, gate] : gates_of_any_strength(rng)) {
    expect_matches_reference(BackwardProblem({{70, 5}, 1, 2, 33, 32}, 15, gate), what);
  }
}

TEST_P(GatedLinearAttentionBackward, ASequenceGivesTheSameBitsAloneAndInABatch) {
  const BackwardProblem batch({{1, 70, 0, 33}, 2, 2, 24, 20}, 16);
  const Gradients together = batch.run(context_);
  for (size_t i = 0; i < batch.c.lengths.size(); ++i) {
    expect_same_alone(batch, together, i, alone(batch, i).run(context_));
  }
}

TEST_P(GatedLinearAttentionBackward, TheSameBitsForAnyNumberOfThreads) {
  const BackwardProblem problem({{100}, 3, 2, 40, 24}, 17);
  const Gradients expected = problem.run(context_);
  for (const int threads : {1, 3}) {
    Context context{threads};
    expect_same(problem.run(context), expected, fmt::format("{} threads", threads));
  }
}

// Two calls, the later tokens first, whose gradient of the state is what the earlier ones start
// from: the same as one call.
TEST_P(GatedLinearAttentionBackward, PartsOfASequenceChain) {
  BackwardProblem problem({{90}, 2, 2, 24, 16}, 18);
  const Gradients expected = problem.run(context_);
  problem.c.lengths = {50, 40};
  problem.d_finals.insert(problem.d_finals.begin(), Tensor(DType::kF32, problem.states[0].shape()));
  BackwardProblem earlier_tokens = alone(problem, 0);
  problem.states.push_back(copy_of(earlier_tokens.run_forward_reference().states[0]));
  BackwardProblem later_tokens = alone(problem, 1);
  const Gradients later = later_tokens.run(context_);
  earlier_tokens.d_finals[0] = copy_of(later.d_states[0]);
  const Gradients earlier = earlier_tokens.run(context_);
  EXPECT_LE(test::relative_error(earlier.d_states[0], expected.d_states[0]), 1e-5);
  const auto joined = [](const Tensor& a, const Tensor& b) {
    std::vector<float> all = contents(a);
    const std::vector<float> rest = contents(b);
    all.insert(all.end(), rest.begin(), rest.end());
    return all;
  };
  const double tolerance = 1e-4;
  EXPECT_LE(test::largest_difference(joined(earlier.d_k, later.d_k), contents(expected.d_k)),
            tolerance);
  EXPECT_LE(test::largest_difference(joined(earlier.d_q, later.d_q), contents(expected.d_q)),
            tolerance);
  EXPECT_LE(test::largest_difference(joined(earlier.d_g, later.d_g), contents(expected.d_g)),
            tolerance);
}

TEST_P(GatedLinearAttentionBackward, StatesMayBeAbsent) {
  BackwardProblem problem({{40}, 2, 2, 24, 16}, 19);
  for (Tensor& d_final : problem.d_finals) std::fill_n(d_final.as<float>(), 2 * 24 * 16, 0.0f);
  const Gradients expected = problem.run(context_);
  problem.with_finals = false;
  expect_same(problem.run(context_), expected, "no final gradient");
  const Gradients without = problem.solve(
      context_, DType::kF32, DType::kF32, [&](const GatedLinearAttentionBackwardArgs& args) {
        std::vector<GatedLinearAttentionBackwardSequence> sequences(args.sequences.begin(),
                                                                    args.sequences.end());
        sequences[0].d_state = {};
        GatedLinearAttentionBackwardArgs changed = args;
        changed.sequences = sequences;
        gated_linear_attention_backward(context_, changed);
      });
  EXPECT_TRUE(test::same_bits(without.d_k, expected.d_k));
  EXPECT_TRUE(std::isnan(without.d_states[0].as<float>()[0]));
}

// Refusals: each change makes one argument wrong.
void expect_refused(const std::string& part,
                    const std::function<void(GatedLinearAttentionBackwardArgs&)>& change) {
  Context context;
  const BackwardProblem problem({{6}, 2, 2, 4, 3}, 20);
  problem.solve(
      context, DType::kF32, DType::kF32, [&](const GatedLinearAttentionBackwardArgs& args) {
        GatedLinearAttentionBackwardArgs changed = args;
        change(changed);
        test::expect_usage_error([&] { gated_linear_attention_backward(context, changed); }, part);
      });
}

TEST(GatedLinearAttentionBackwardRefusals, Shapes) {
  using Args = GatedLinearAttentionBackwardArgs;
  const Tensor other(DType::kF32, Shape{6, 3, 4});
  Tensor output(DType::kF32, Shape{6, 3, 4});
  expect_refused("q: expected", [&](Args& args) { args.q = {}; });
  expect_refused("k: expected", [&](Args& args) { args.k = args.v; });
  expect_refused("multiple of", [&](Args& args) { args.q = other; });
  expect_refused("v: expected", [&](Args& args) { args.v = other; });
  expect_refused("g: expected", [&](Args& args) { args.g = other; });
  expect_refused("d_o: expected", [&](Args& args) { args.d_o = other; });
  expect_refused("d_q: expected", [&](Args& args) { args.d_q = output; });
  expect_refused("d_k: expected", [&](Args& args) { args.d_k = output; });
  expect_refused("d_v: expected", [&](Args& args) { args.d_v = output; });
  expect_refused("d_g: expected", [&](Args& args) { args.d_g = output; });
  expect_refused("scale: expected", [](Args& args) { args.scale = HUGE_VALF; });
}

TEST(GatedLinearAttentionBackwardRefusals, OverlapAndSequences) {
  using Args = GatedLinearAttentionBackwardArgs;
  const auto written = [](const ConstTensorView& tensor) {
    return TensorView(const_cast<std::byte*>(tensor.data()), DType::kF32, tensor.shape());
  };
  expect_refused("overlap", [&](Args& args) { args.d_q = written(args.q); });
  expect_refused("overlap", [&](Args& args) { args.d_k = args.d_g; });
  expect_refused("state: expected", [&](Args& args) { args.sequences = {}; });
  expect_refused("state: expected none", [](Args& args) { args.state = args.sequences[0].state; });
  std::vector<GatedLinearAttentionBackwardSequence> sequences;
  const auto replace = [&](Args& args, auto change) {
    sequences.assign(args.sequences.begin(), args.sequences.end());
    change(sequences[0]);
    args.sequences = sequences;
  };
  const std::string lengths = "lengths that add up to 6";
  expect_refused(lengths, [&](Args& args) { replace(args, [](auto& s) { s.tokens = 5; }); });
  expect_refused(lengths, [&](Args& args) { replace(args, [](auto& s) { s.tokens = 7; }); });
  expect_refused(lengths, [&](Args& args) { replace(args, [](auto& s) { s.tokens = -1; }); });
  expect_refused("overlap", [&](Args& args) {
    replace(args, [&](auto& s) { s.d_state = written(s.state); });
  });
  expect_refused("d_final_state: expected", [&](Args& args) {
    const ConstTensorView g = args.g;
    replace(args, [&](auto& s) { s.d_final_state = g; });
  });
}

}  // namespace
}  // namespace spb::ops
