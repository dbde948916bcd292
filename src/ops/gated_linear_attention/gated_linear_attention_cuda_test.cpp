// gated_linear_attention on a CUDA device against the reference: any length, batch and gate.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention_test_batch.h"

namespace spb::ops {
namespace {

using Form = GatedLinearAttentionForm;
void expect_close(const BatchOutputs& got, const BatchOutputs& expected, double tolerance,
                  const std::string& what) {
  EXPECT_LE(test::relative_error(got.o, expected.o), tolerance) << what << " o";
  for (size_t i = 0; i < expected.states.size(); ++i) {
    EXPECT_LE(test::relative_error(got.states[i], expected.states[i]), tolerance)
        << what << " state " << i;
  }
}

void expect_same(const BatchOutputs& a, const BatchOutputs& b, const std::string& what) {
  EXPECT_TRUE(test::same_bits(a.o, b.o)) << what;
  for (size_t i = 0; i < a.states.size(); ++i) {
    EXPECT_TRUE(test::same_bits(a.states[i], b.states[i])) << what << " state " << i;
  }
}

class GatedLinearAttentionCuda : public test::OnCuda {
 protected:
  void expect_matches_reference(BatchProblem& problem, const std::string& gates = {}) {
    const BatchOutputs expected = problem.run_forward_reference();
    for (const DType gate_dtype : {DType::kF32, DType::kBF16}) {
      for (const Form form : {Form::kRecurrent, Form::kChunked, Form::kAutomatic}) {
        if (form != Form::kAutomatic && gate_dtype == DType::kBF16) continue;
        expect_close(problem.run_forward(context(), GetParam(), gate_dtype, form), expected,
                     batch_tolerance(GetParam()),
                     fmt::format("{} {} gates {} form {} {}", describe(problem.c), name(GetParam()),
                                 name(gate_dtype), static_cast<int>(form), gates));
      }
    }
  }

  void expect_rectifies(BatchProblem problem, Form form) {
    const std::string what = describe(problem.c);
    problem.rectify = true;
    const BatchOutputs got = problem.run_forward(context(), GetParam(), DType::kF32, form);
    expect_close(got, problem.run_forward_reference(), batch_tolerance(GetParam()), what);
    expect_same(problem.run_forward(context(), GetParam(), DType::kF32, form, true), got,
                what + " in place");
    problem.rectify = false;
    for (Tensor* tensor : {&problem.q, &problem.k}) {
      float* x = tensor->as<float>();
      std::transform(x, x + tensor->shape().elements(), x,
                     [](float z) { return std::max(z, 0.0f); });
    }
    expect_same(problem.run_forward(context(), GetParam(), DType::kF32, form), got, what);
  }
};

INSTANTIATE_TEST_SUITE_P(Cuda, GatedLinearAttentionCuda, test::activation_dtypes(),
                         test::dtype_name);

TEST_P(GatedLinearAttentionCuda, AnyLength) {
  for (const int64_t dim : {64, 128}) {
    for (const int64_t tokens : {1, 15, 16, 17, 63, 64, 65, 129, 300}) {
      for (const int64_t group : {1, 2, 7}) {
        BatchProblem problem({{tokens}, 2, group, dim, dim}, 1 + static_cast<uint64_t>(tokens));
        expect_matches_reference(problem);
      }
    }
  }
}

TEST_P(GatedLinearAttentionCuda, LongSequences) {
  for (const int64_t dim : {64, 128}) {
    for (const int64_t tokens : {4095, 4097}) {
      BatchProblem problem({{tokens}, 2, 2, dim, dim}, 3);
      expect_matches_reference(problem);
    }
  }
  BatchProblem segments_of_many_chunks({{2500}, 7, 1, 64, 64}, 4);
  expect_matches_reference(segments_of_many_chunks);
}

TEST_P(GatedLinearAttentionCuda, AnyWidth) {
  Rng rng(5);
  for (const int64_t key_dim : {1, 7, 16, 33, 64, 100, 128, 256}) {
    for (const int64_t value_dim : {1, 8, 33, 64, 128, 200}) {
      BatchProblem problem(
          {{1 + rng.below(40)}, 1 + rng.below(3), 1 + rng.below(17), key_dim, value_dim}, 6);
      expect_matches_reference(problem);
    }
  }
}

TEST_P(GatedLinearAttentionCuda, Batches) {
  BatchProblem mixed({{0, 1, 100, 5000, 0, 16, 17}, 2, 7, 128, 128}, 7);
  expect_matches_reference(mixed);
  BatchProblem many({std::vector<int64_t>(150, 1), 2, 3, 64, 64}, 8);  // more than one launch
  expect_matches_reference(many);
  BatchProblem many_prompts({std::vector<int64_t>(70, 40), 1, 2, 64, 64}, 9);
  expect_matches_reference(many_prompts);
  BatchProblem none({{0, 0}, 2, 2, 64, 64}, 10);
  expect_matches_reference(none);
}

TEST_P(GatedLinearAttentionCuda, GatesOfAnyStrength) {
  Rng rng(11);
  const auto tied = [&](float z) {
    const double x = z * rng.normal();
    return static_cast<float>(-std::max(x, 0.0) - std::log1p(std::exp(-std::fabs(x))));
  };
  constexpr float kMagnitudes[] = {1, 10, 100};
  std::vector<std::pair<std::string, GateSource>> gates = gates_of_any_strength(rng);
  for (const float z : kMagnitudes) {
    gates.emplace_back(fmt::format("tied, {}", z), [&tied, z] { return tied(z); });
  }
  for (const auto& [what, gate] : gates) {
    for (const int64_t dim : {64, 128}) {
      BatchProblem problem({{200, 70}, 2, 3, dim, dim}, 12, gate);
      expect_matches_reference(problem, what);
    }
  }
}

// No cancellation hides anything: tokens that remember next to nothing keep their precision.
TEST_P(GatedLinearAttentionCuda, EveryRowKeepsItsPrecision) {
  Rng rng(13);
  for (const float strength : {0.1f, 3.0f, 30.0f}) {
    BatchProblem problem({{150}, 1, 2, 64, 64}, 14, [&] { return -rng.uniform(0.0f, strength); });
    for (Tensor* tensor : {&problem.q, &problem.k, &problem.v, &problem.states[0]}) {
      for (int64_t i = 0; i < tensor->shape().elements(); ++i) {
        tensor->as<float>()[i] = to_float(to_bf16(std::exp(rng.uniform(-3.0f, 3.0f))));
      }
    }
    const BatchOutputs got =
        problem.run_forward(context(), GetParam(), DType::kF32, Form::kChunked);
    const double tolerance = GetParam() == DType::kBF16 ? 1.5e-2 : 1e-5;
    EXPECT_LE(test::largest_row_error(got.o, problem.run_forward_reference().o), tolerance)
        << strength;
  }
}

TEST_P(GatedLinearAttentionCuda, ASequenceGivesTheSameBitsAloneAndInABatch) {
  const std::vector<int64_t> lengths = {1, 700, 3, 64, 200};
  for (const int64_t dim : {64, 128}) {
    BatchProblem batch({lengths, 2, 2, dim, dim}, 15);
    const BatchOutputs together =
        batch.run_forward(context(), GetParam(), DType::kF32, Form::kAutomatic);
    for (size_t i = 0; i < lengths.size(); ++i) {
      const BatchOutputs got =
          alone(batch, i).run_forward(context(), GetParam(), DType::kF32, Form::kAutomatic);
      EXPECT_TRUE(same_tokens(got.o, together.o, batch.first_token(i)));
      EXPECT_TRUE(test::same_bits(got.states[0], together.states[i]));
    }
  }
}

// `count` tokens of a batch from token `first` on, as a sequence of its own.
BatchProblem tokens_of(const BatchProblem& batch, int64_t first, int64_t count,
                       const Tensor& state) {
  BatchCase c = batch.c;
  c.lengths = {count};
  BatchProblem part(c, 1);
  take_tokens(batch.q, first, part.q);
  take_tokens(batch.k, first, part.k);
  take_tokens(batch.v, first, part.v);
  take_tokens(batch.g, first, part.g);
  part.states[0] = copy_of(state);
  return part;
}

// States [boundaries, heads, K, V] that a batch passes, and its other outputs.
struct Passed {
  BatchOutputs outputs;
  Tensor boundaries;
};

Passed pass(const BatchProblem& batch, Context& context, DType dtype, int64_t interval,
            const std::function<void(const GatedLinearAttentionArgs&)>& solver) {
  int64_t count = 0;
  for (const int64_t tokens : batch.c.lengths) count += tokens / interval;
  Tensor boundaries =
      test::poisoned(context, Shape{count, batch.c.kv_heads, batch.c.key_dim, batch.c.value_dim});
  BatchOutputs outputs =
      batch.solve_forward(context, dtype, DType::kF32, false, [&](GatedLinearAttentionArgs args) {
        args.boundary_interval = interval;
        args.boundary_states = boundaries;
        solver(args);
      });
  return {std::move(outputs), test::take(context, boundaries)};
}

Passed pass(const BatchProblem& batch, Context& context, DType dtype, int64_t interval, Form form) {
  return pass(batch, context, dtype, interval, [&](GatedLinearAttentionArgs args) {
    args.form = form;
    gated_linear_attention(context, args);
  });
}

// Each call's outputs and states against those that the batch passed.
void expect_shorter_calls_agree(const BatchProblem& batch, Context& context, DType dtype,
                                int64_t interval, Form form) {
  const Passed got = pass(batch, context, dtype, interval, form);
  const int64_t state_size = batch.c.kv_heads * batch.c.key_dim * batch.c.value_dim;
  const float* boundary = got.boundaries.as<float>();
  for (size_t i = 0; i < batch.c.lengths.size(); ++i) {
    const int64_t begin = batch.first_token(i);
    Tensor state = copy_of(batch.states[i]);
    for (int64_t at = 0; at < batch.c.lengths[i]; at += interval) {
      const int64_t count = std::min(interval, batch.c.lengths[i] - at);
      BatchOutputs one =
          tokens_of(batch, begin + at, count, state).run_forward(context, dtype, DType::kF32, form);
      EXPECT_TRUE(same_tokens(one.o, got.outputs.o, begin + at)) << "sequence " << i << ", " << at;
      state = std::move(one.states[0]);
      if (count < interval) break;
      EXPECT_EQ(std::memcmp(boundary, state.as<float>(), state_size * sizeof(float)), 0)
          << "sequence " << i << ", boundary after " << at + count;
      boundary += state_size;
    }
    EXPECT_TRUE(test::same_bits(state, got.outputs.states[i])) << "sequence " << i;
  }
}

// A sequence taken up from any of its boundaries goes on as if it had never stopped. Sequences end
// on a boundary, before the first one, and between two.
TEST_P(GatedLinearAttentionCuda, StatesAtBoundariesAreThoseOfShorterCalls) {
  for (const int64_t interval : {33, 64}) {
    for (const int64_t dim : {64, 128, 40}) {
      const BatchProblem batch(
          {{2 * interval + 4, 0, interval - 1, interval, interval + 1, 3 * interval, 1},
           2,
           2,
           dim,
           dim},
          23);
      Context host(1);
      const Passed expected =
          pass(batch, host, DType::kF32, interval, gated_linear_attention_reference);
      for (const Form form : {Form::kRecurrent, Form::kChunked, Form::kAutomatic}) {
        expect_shorter_calls_agree(batch, context(), GetParam(), interval, form);
        const Passed got = pass(batch, context(), GetParam(), interval, form);
        expect_close(got.outputs, expected.outputs, batch_tolerance(GetParam()), "boundaries");
        EXPECT_LE(test::relative_error(got.boundaries, expected.boundaries),
                  batch_tolerance(GetParam()))
            << interval << " tokens, dim " << dim << ", form " << static_cast<int>(form);
      }
    }
  }
}

TEST_P(GatedLinearAttentionCuda, TheSameBitsAgainAndInPlace) {
  for (const int64_t dim : {64, 128}) {
    BatchProblem problem({{3, 1000, 1}, 2, 7, dim, dim}, 17);
    const BatchOutputs expected =
        problem.run_forward(context(), GetParam(), DType::kF32, Form::kAutomatic);
    expect_same(problem.run_forward(context(), GetParam(), DType::kF32, Form::kAutomatic), expected,
                "again");
    expect_same(problem.run_forward(context(), GetParam(), DType::kF32, Form::kAutomatic, true),
                expected, "in place");
  }
}

// As from inputs that were mapped before, bit by bit; also where gates are too steep for one
// anchor.
TEST_P(GatedLinearAttentionCuda, RectifiesWhatItReads) {
  const std::vector<GateSource> gates = {{}, [] { return -20.0f; }};
  for (const int64_t dim : {64, 128, 40}) {
    for (const GateSource& gate : gates) {
      expect_rectifies(BatchProblem({{1, 200, 5}, 2, 7, dim, dim}, 20, gate), Form::kRecurrent);
      expect_rectifies(BatchProblem({{1, 200, 5}, 2, 7, dim, dim}, 21, gate), Form::kChunked);
      expect_rectifies(BatchProblem({{1, 200, 5}, 2, 7, dim, dim}, 22, gate), Form::kAutomatic);
    }
  }
}

TEST_P(GatedLinearAttentionCuda, PrefillThenDecodeEqualsPrefillOfAll) {
  BatchProblem problem({{200}, 2, 2, 64, 64}, 18);
  const BatchOutputs expected = problem.run_forward_reference();
  for (const int64_t prefix : {1, 64, 100, 199}) {
    const Tensor q = test::put(context(), problem.q, GetParam());
    const Tensor k = test::put(context(), problem.k, GetParam());
    const Tensor v = test::put(context(), problem.v, GetParam());
    const Tensor g = test::put(context(), problem.g);
    Tensor o = test::poisoned(context(), problem.q.shape(), GetParam());
    Tensor state = test::put(context(), problem.states[0]);
    const auto step = [&](int64_t first, int64_t count) {
      const auto part = [&](const ConstTensorView& tensor) {
        const Shape& shape = tensor.shape();
        return ConstTensorView(tensor.row(first * shape[1]), tensor.dtype(),
                               Shape{count, shape[1], shape[2]});
      };
      const TensorView out(o.view().row(first * 4), GetParam(), Shape{count, 4, 64});
      gated_linear_attention(context(), {part(q), part(k), part(v), part(g), state, out,
                                         problem.scale, Form::kAutomatic});
    };
    step(0, prefix);
    for (int64_t i = prefix; i < 200; ++i) step(i, 1);
    BatchOutputs got{test::take(context(), o), {}};
    got.states.push_back(test::take(context(), state));
    expect_close(got, expected, batch_tolerance(GetParam()), fmt::format("prefix {}", prefix));
  }
}

// A token that is not a number spoils itself and what follows; before it at most its sub-chunk.
TEST_P(GatedLinearAttentionCuda, NanSpreadsForward) {
  for (Tensor BatchProblem::*which :
       {&BatchProblem::q, &BatchProblem::k, &BatchProblem::v, &BatchProblem::g}) {
    for (const int64_t token : {0, 40, 64, 299}) {
      BatchProblem problem({{300}, 1, 2, 64, 64}, 19);
      problem.rectify = token % 8 == 0;  // NaN stays NaN
      const BatchOutputs clean =
          problem.run_forward(context(), GetParam(), DType::kF32, Form::kChunked);
      Tensor& tensor = problem.*which;
      const int64_t width = tensor.shape().elements() / 300;
      std::fill_n(tensor.as<float>() + token * width, width, test::kPoison);
      const BatchOutputs got =
          problem.run_forward(context(), GetParam(), DType::kF32, Form::kChunked);
      const int64_t row = 2 * 64;
      EXPECT_EQ(std::memcmp(got.o.as<float>(), clean.o.as<float>(),
                            static_cast<size_t>(token / 16 * 16 * row) * sizeof(float)),
                0);
      EXPECT_TRUE(std::isnan(got.o.as<float>()[token * row]));
    }
  }
}

}  // namespace
}  // namespace spb::ops
