// Random batches for the tests of gated_linear_attention and its gradients, on any device.
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

namespace spb::ops {

using GateSource = std::function<float()>;

struct BatchCase {
  std::vector<int64_t> lengths;
  int64_t kv_heads = 1;
  int64_t group = 1;
  int64_t key_dim = 16;
  int64_t value_dim = 16;
};

inline std::string describe(const BatchCase& c) {
  return fmt::format("L {} kv {} group {} K {} V {}", fmt::join(c.lengths, "+"), c.kv_heads,
                     c.group, c.key_dim, c.value_dim);
}

// Products of bf16, and results in it; else sums of f32 along a sequence.
inline double batch_tolerance(DType dtype) { return dtype == DType::kBF16 ? 5e-3 : 1e-5; }

inline Tensor copy_of(const ConstTensorView& from) {
  Tensor to(DType::kF32, from.shape());
  std::copy_n(from.as<float>(), from.shape().elements(), to.as<float>());
  return to;
}

inline Tensor take_any(Context& context, const Tensor& tensor) {
  if (tensor.shape().elements() == 0) return Tensor(DType::kF32, tensor.shape());
  return test::take(context, tensor);
}

// The tokens that `part` has room for, from token `first` of all on.
inline void take_tokens(const Tensor& all, int64_t first, Tensor& part) {
  const int64_t width = all.shape()[1] * all.shape()[2];
  std::copy_n(all.as<float>() + first * width, part.shape().elements(), part.as<float>());
}
// Whether `part` has the bits of all tokens from `first` on.
inline bool same_tokens(const Tensor& part, const Tensor& all, int64_t first) {
  Tensor expected(DType::kF32, part.shape());
  take_tokens(all, first, expected);
  return test::same_bits(part, expected);
}

struct BatchOutputs {
  Tensor o;
  std::vector<Tensor> states;  // final ones
};

// Numbers that bf16 holds exactly, gates too.
struct BatchProblem {
  BatchCase c;
  Tensor q, k, v, g;
  std::vector<Tensor> states;
  float scale;
  bool rectify = false;

  BatchProblem(const BatchCase& case_, uint64_t seed, GateSource gate = {})
      : c(case_), scale(1.0f / std::sqrt(static_cast<float>(c.key_dim))) {
    const int64_t tokens = first_token(c.lengths.size());
    Rng rng(seed);
    q = test::random_tensor(rng, Shape{tokens, c.kv_heads * c.group, c.key_dim});
    k = test::random_tensor(rng, Shape{tokens, c.kv_heads, c.key_dim});
    v = test::random_tensor(rng, Shape{tokens, c.kv_heads, c.value_dim});
    g = Tensor(DType::kF32, k.shape());
    if (!gate) gate = [&] { return -rng.uniform(0.0f, 0.2f); };
    std::generate_n(g.as<float>(), g.shape().elements(), [&] { return to_float(to_bf16(gate())); });
    for (size_t i = 0; i < c.lengths.size(); ++i) {
      states.push_back(test::random_tensor(rng, Shape{c.kv_heads, c.key_dim, c.value_dim}));
    }
  }

  int64_t first_token(size_t sequence) const {
    int64_t first = 0;
    for (size_t i = 0; i < sequence; ++i) first += c.lengths[i];
    return first;
  }
  void take_sequence(const BatchProblem& batch, size_t index) {
    const int64_t first = batch.first_token(index);
    take_tokens(batch.q, first, q);
    take_tokens(batch.k, first, k);
    take_tokens(batch.v, first, v);
    take_tokens(batch.g, first, g);
    states[0] = copy_of(batch.states[index]);
  }
  Shape output_shape() const { return Shape{q.shape()[0], q.shape()[1], c.value_dim}; }

  // Calls solve(arguments) with tensors of `context`'s device; outputs start as NaN.
  template <typename Solver>
  BatchOutputs solve_forward(Context& context, DType dtype, DType gate_dtype, bool in_place,
                             Solver&& solver) const {
    const auto put = [&](const Tensor& tensor) { return test::put(context, tensor, dtype); };
    const Tensor inputs[] = {put(q), put(k), put(v), test::put(context, g, gate_dtype)};
    Tensor o = in_place ? put(q) : test::poisoned(context, output_shape(), dtype);
    std::vector<Tensor> after;
    std::vector<GatedLinearAttentionSequence> sequences;
    for (size_t i = 0; i < states.size(); ++i) {
      after.push_back(test::put(context, states[i]));
      sequences.push_back({c.lengths[i], after.back()});
    }
    GatedLinearAttentionArgs args{inputs[0], inputs[1], inputs[2], inputs[3], {}, o, scale};
    if (in_place) args.q = o;
    args.sequences = sequences;
    args.rectify = rectify;
    solver(args);
    BatchOutputs result{take_any(context, o), {}};
    for (const Tensor& state : after) result.states.push_back(take_any(context, state));
    return result;
  }
  BatchOutputs run_forward(Context& context, DType dtype, DType gate_dtype,
                           GatedLinearAttentionForm form, bool in_place = false) const {
    return solve_forward(context, dtype, gate_dtype, in_place, [&](GatedLinearAttentionArgs args) {
      args.form = form;
      gated_linear_attention(context, args);
    });
  }
  BatchOutputs run_forward_reference() const {
    Context host(1);
    return solve_forward(host, DType::kF32, DType::kF32, false, gated_linear_attention_reference);
  }
};

// The tokens of sequence `index` as a problem of its own.
template <typename Problem>
Problem alone(const Problem& batch, size_t index) {
  BatchCase c = batch.c;
  c.lengths = {batch.c.lengths[index]};
  Problem one(c, 1);
  one.take_sequence(batch, index);
  return one;
}

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
      {"-2.5", [] { return -2.5f; }},
      {"-2.6", [] { return -2.6f; }},
      {"a reset now and then", [&rng] { return rng.below(20) == 0 ? -1e9f : -1e-3f; }},
      {"resets mostly", [&rng] { return rng.below(4) != 0 ? -87.0f : -0.01f; }},
      {"-88", [] { return -88.0f; }},
      {"-infinity", [] { return -std::numeric_limits<float>::infinity(); }},
  };
}

}  // namespace spb::ops
