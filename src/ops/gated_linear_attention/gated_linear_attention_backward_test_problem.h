// Random batches for the tests of gated_linear_attention_backward, on any device.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention_backward.h"
#include "ops/gated_linear_attention/gated_linear_attention_test_batch.h"

namespace spb::ops {

struct Gradients {
  Tensor d_q, d_k, d_v, d_g;
  std::vector<Tensor> d_states;
};

struct BackwardProblem : BatchProblem {
  Tensor d_o;
  std::vector<Tensor> d_finals;
  bool with_finals = true;

  BackwardProblem(const BatchCase& case_, uint64_t seed, const GateSource& gate = {})
      : BatchProblem(case_, seed, gate) {
    Rng rng(seed + 1000);
    d_o = test::random_tensor(rng, output_shape());
    for (const Tensor& state : states) d_finals.push_back(test::random_tensor(rng, state.shape()));
  }

  void take_sequence(const BackwardProblem& batch, size_t index) {
    BatchProblem::take_sequence(batch, index);
    take_tokens(batch.d_o, batch.first_token(index), d_o);
    d_finals[0] = copy_of(batch.d_finals[index]);
  }

  // Calls solve(arguments) with tensors of `context`'s device; outputs start as NaN.
  template <typename Solver>
  Gradients solve(Context& context, DType dtype, DType gate_dtype, Solver&& solver) const {
    const auto put = [&](const Tensor& tensor) { return test::put(context, tensor, dtype); };
    const Tensor inputs[] = {put(q), put(k), put(v), put(d_o), test::put(context, g, gate_dtype)};
    Tensor d_q = test::poisoned(context, q.shape(), dtype);
    Tensor d_k = test::poisoned(context, k.shape(), dtype);
    Tensor d_v = test::poisoned(context, v.shape(), dtype);
    Tensor d_g = test::poisoned(context, g.shape());
    std::vector<Tensor> ends, d_states;
    std::vector<GatedLinearAttentionBackwardSequence> sequences;
    ends.reserve(2 * states.size());
    for (size_t i = 0; i < states.size(); ++i) {
      ends.push_back(test::put(context, states[i]));
      const ConstTensorView state = ends.back();
      ends.push_back(test::put(context, d_finals[i]));
      d_states.push_back(test::poisoned(context, states[i].shape()));
      sequences.push_back({c.lengths[i], state, {}, d_states.back()});
      if (with_finals) sequences.back().d_final_state = ends.back();
    }
    GatedLinearAttentionBackwardArgs args{inputs[0], inputs[1], inputs[2], inputs[4], inputs[3],
                                          d_q,       d_k,       d_v,       d_g};
    args.scale = scale;
    args.sequences = sequences;
    solver(args);
    const auto take = [&](const Tensor& tensor) { return take_any(context, tensor); };
    Gradients result{take(d_q), take(d_k), take(d_v), take(d_g), {}};
    for (const Tensor& d_state : d_states) result.d_states.push_back(take(d_state));
    return result;
  }
  Gradients run(Context& context, DType dtype = DType::kF32, DType gate_dtype = DType::kF32) const {
    return solve(context, dtype, gate_dtype,
                 [&](const auto& args) { gated_linear_attention_backward(context, args); });
  }
  Gradients run_reference() const {
    Context host;
    return solve(host, DType::kF32, DType::kF32, gated_linear_attention_backward_reference);
  }
};

inline double norm(const ConstTensorView& x) {
  double sum = 0;
  for (int64_t i = 0; i < x.shape().elements(); ++i) {
    sum += double{x.as<float>()[i]} * x.as<float>()[i];
  }
  return std::sqrt(sum);
}

// ||d_g difference|| over the larger of ||d_g|| and ||k . d_k||.
inline double gate_error(const BackwardProblem& problem, const Gradients& got,
                         const Gradients& expected) {
  Tensor products = copy_of(expected.d_k);
  for (int64_t i = 0; i < products.shape().elements(); ++i) {
    products.as<float>()[i] *= problem.k.as<float>()[i];
  }
  const double size = norm(expected.d_g);
  const double share = size / std::max({size, norm(products), 1e-30});
  if (share == 0) return norm(got.d_g) / std::max(norm(products), 1e-30);
  return test::relative_error(got.d_g, expected.d_g) * share;
}

inline void expect_close(const BackwardProblem& problem, const Gradients& got,
                         const Gradients& expected, double tolerance, const std::string& what) {
  EXPECT_LE(test::relative_error(got.d_q, expected.d_q), tolerance) << what << " d_q";
  EXPECT_LE(test::relative_error(got.d_k, expected.d_k), tolerance) << what << " d_k";
  EXPECT_LE(test::relative_error(got.d_v, expected.d_v), tolerance) << what << " d_v";
  EXPECT_LE(gate_error(problem, got, expected), tolerance) << what << " d_g";
  for (size_t i = 0; i < expected.d_states.size(); ++i) {
    // What is next to nothing in f32 may be nothing.
    if (norm(expected.d_states[i]) < 1e-20) {
      EXPECT_LT(norm(got.d_states[i]), 1e-20) << what << " d_state " << i;
      continue;
    }
    EXPECT_LE(test::relative_error(got.d_states[i], expected.d_states[i]), tolerance)
        << what << " d_state " << i;
  }
}

inline void expect_same(const Gradients& a, const Gradients& b, const std::string& what) {
  EXPECT_TRUE(test::same_bits(a.d_q, b.d_q)) << what << " d_q";
  EXPECT_TRUE(test::same_bits(a.d_k, b.d_k)) << what << " d_k";
  EXPECT_TRUE(test::same_bits(a.d_v, b.d_v)) << what << " d_v";
  EXPECT_TRUE(test::same_bits(a.d_g, b.d_g)) << what << " d_g";
  for (size_t i = 0; i < a.d_states.size(); ++i) {
    EXPECT_TRUE(test::same_bits(a.d_states[i], b.d_states[i])) << what << " d_state " << i;
  }
}

// Whether a sequence gives the bits that it gives in the batch.
inline void expect_same_alone(const BackwardProblem& batch, const Gradients& together, size_t index,
                              const Gradients& got) {
  const auto same = [&](const Tensor& part, const Tensor& whole) {
    return same_tokens(part, whole, batch.first_token(index));
  };
  EXPECT_TRUE(same(got.d_q, together.d_q)) << index;
  EXPECT_TRUE(same(got.d_k, together.d_k)) << index;
  EXPECT_TRUE(same(got.d_v, together.d_v)) << index;
  EXPECT_TRUE(same(got.d_g, together.d_g)) << index;
  EXPECT_TRUE(test::same_bits(got.d_states[0], together.d_states[index])) << index;
}

}  // namespace spb::ops
