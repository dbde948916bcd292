// Random batches for the tests of gated_linear_attention_backward, on any device.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/test_cuda.h"
#include "core/test_operators.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward.h"

namespace spb::ops {

using GateSource = std::function<float()>;

struct BackwardCase {
  std::vector<int64_t> lengths;
  int64_t kv_heads = 1;
  int64_t group = 1;
  int64_t key_dim = 16;
  int64_t value_dim = 16;
};

inline std::string describe(const BackwardCase& c) {
  return fmt::format("L {} kv {} group {} K {} V {}", fmt::join(c.lengths, "+"), c.kv_heads,
                     c.group, c.key_dim, c.value_dim);
}

struct Gradients {
  Tensor d_q, d_k, d_v, d_g;
  std::vector<Tensor> d_states;
};

inline Tensor copy_of(const ConstTensorView& from) {
  Tensor to(DType::kF32, from.shape());
  std::copy_n(from.as<float>(), from.shape().elements(), to.as<float>());
  return to;
}

// Numbers that bf16 holds exactly, gates too.
struct BackwardProblem {
  BackwardCase c;
  Tensor q, k, v, g, d_o;
  std::vector<Tensor> states, d_finals;
  float scale;
  bool with_finals = true;

  BackwardProblem(const BackwardCase& case_, uint64_t seed, GateSource gate = {})
      : c(case_), scale(1.0f / std::sqrt(static_cast<float>(c.key_dim))) {
    int64_t tokens = 0;
    for (const int64_t length : c.lengths) tokens += length;
    Rng rng(seed);
    q = test::random_tensor(rng, Shape{tokens, c.kv_heads * c.group, c.key_dim});
    k = test::random_tensor(rng, Shape{tokens, c.kv_heads, c.key_dim});
    v = test::random_tensor(rng, Shape{tokens, c.kv_heads, c.value_dim});
    d_o = test::random_tensor(rng, Shape{tokens, c.kv_heads * c.group, c.value_dim});
    g = Tensor(DType::kF32, k.shape());
    if (!gate) gate = [&] { return -rng.uniform(0.0f, 0.2f); };
    std::generate_n(g.as<float>(), g.shape().elements(), [&] { return to_float(to_bf16(gate())); });
    const Shape state{c.kv_heads, c.key_dim, c.value_dim};
    for (size_t i = 0; i < c.lengths.size(); ++i) {
      states.push_back(test::random_tensor(rng, state));
      d_finals.push_back(test::random_tensor(rng, state));
    }
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
    const auto take = [&](const Tensor& tensor) {
      if (tensor.shape().elements() == 0) return Tensor(DType::kF32, tensor.shape());
      return test::take(context, tensor);
    };
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

// Gates from none to complete forgetting, and mixtures of extremes.
inline std::vector<std::pair<std::string, GateSource>> gates_of_any_strength(Rng& rng) {
  const auto up_to = [&](float strength) {
    return [&rng, strength] { return -rng.uniform(0.0f, strength); };
  };
  return {
      {"0", [] { return 0.0f; }},
      {"-1e-7", [] { return -1e-7f; }},
      {"weak", up_to(0.02f)},
      {"up to 2", up_to(2)},
      {"up to 5", up_to(5)},
      {"up to 20", up_to(20)},
      {"-2.4", [] { return -2.4f; }},
      {"-2.6", [] { return -2.6f; }},
      {"a reset now and then", [&rng] { return rng.below(20) == 0 ? -1e9f : -1e-3f; }},
      {"resets mostly", [&rng] { return rng.below(4) != 0 ? -87.0f : -0.01f; }},
      {"-88", [] { return -88.0f; }},
      {"-infinity", [] { return -std::numeric_limits<float>::infinity(); }},
  };
}

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

// The tokens of sequence `index` as a problem of its own.
inline BackwardProblem alone(const BackwardProblem& batch, size_t index) {
  BackwardCase c = batch.c;
  c.lengths = {batch.c.lengths[index]};
  BackwardProblem one(c, 1);
  int64_t first = 0;
  for (size_t i = 0; i < index; ++i) first += batch.c.lengths[i];
  const auto cut = [&](const Tensor& from, Tensor& to) {
    const int64_t width = from.shape()[1] * from.shape()[2];
    std::copy_n(from.as<float>() + first * width, to.shape().elements(), to.as<float>());
  };
  cut(batch.q, one.q), cut(batch.k, one.k), cut(batch.v, one.v);
  cut(batch.g, one.g), cut(batch.d_o, one.d_o);
  one.states[0] = copy_of(batch.states[index]);
  one.d_finals[0] = copy_of(batch.d_finals[index]);
  return one;
}

// Whether a sequence gives the bits that it gives in the batch.
inline void expect_same_alone(const BackwardProblem& batch, const Gradients& together, size_t index,
                              const Gradients& got) {
  int64_t first = 0;
  for (size_t i = 0; i < index; ++i) first += batch.c.lengths[i];
  const auto same = [&](const Tensor& part, const Tensor& whole) {
    const int64_t width = whole.shape()[1] * whole.shape()[2];
    return std::equal(part.as<float>(), part.as<float>() + part.shape().elements(),
                      whole.as<float>() + first * width);
  };
  EXPECT_TRUE(same(got.d_q, together.d_q)) << index;
  EXPECT_TRUE(same(got.d_k, together.d_k)) << index;
  EXPECT_TRUE(same(got.d_v, together.d_v)) << index;
  EXPECT_TRUE(same(got.d_g, together.d_g)) << index;
  EXPECT_TRUE(test::same_bits(got.d_states[0], together.d_states[index])) << index;
}

}  // namespace spb::ops
