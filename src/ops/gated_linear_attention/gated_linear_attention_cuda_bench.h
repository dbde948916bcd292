// The part of ops/cuda_bench.cpp about linear attention and its gradients. Not part of the library.
#pragma once

#include <cmath>

#include "ops/cuda_bench_shapes.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward.h"

namespace spb::ops {

// What a layer of linear attention reads.
struct LinearInputs {
  Tensor q, k, v, g, state;

  LinearInputs(CudaBench& bench, int64_t tokens, int64_t dim)
      : q(bench.random(Shape{tokens, kHeads, dim}, kActivations)),
        k(bench.random(Shape{tokens, kKvHeads, dim}, kActivations)),
        v(bench.random(k.shape(), kActivations)),
        g(bench.random(k.shape(), DType::kF32)),
        state(bench.random(Shape{kKvHeads, dim, dim}, DType::kF32)) {
    gated_linear_attention_inputs(bench.context(), {.q = q, .k = k, .g = g});
  }

  // One kv head on the host, with its query heads.
  LinearInputs(Context& context, const LinearInputs& all)
      : q(take_heads(context, all.q, kVerifiedHead * kGroup, kGroup)),
        k(take_heads(context, all.k, kVerifiedHead, 1)),
        v(take_heads(context, all.v, kVerifiedHead, 1)),
        g(take_heads(context, all.g, kVerifiedHead, 1)),
        state(one_state(context, all.state)) {}

  static Tensor one_state(Context& context, const Tensor& states) {
    const int64_t dim = states.shape().last();
    return part_on_host(context, states, kVerifiedHead * dim, dim, Shape{1, dim, dim});
  }
};

inline void linear_attention_inputs(CudaBench& bench, int64_t tokens) {
  Context& context = bench.context();
  std::vector<Tensor> q, k, g;
  for (int i = 0; i < kSets; ++i) {
    q.push_back(bench.random(Shape{tokens, kHeads, kDim}, kActivations));
    k.push_back(bench.random(Shape{tokens, kKvHeads, kDim}, kActivations));
    g.push_back(bench.random(k[0].shape(), DType::kF32));
  }
  const auto call = [&](int i) {
    const auto set = static_cast<size_t>(i);
    gated_linear_attention_inputs(context, {.q = q[set], .k = k[set], .g = g[set]});
  };
  Tensor q_host = take(context, q[0]);
  Tensor g_host = take(context, g[0]);
  float* z = q_host.as<float>();
  std::transform(z, z + q_host.shape().elements(), z, [](float x) { return std::max(x, 0.0f); });
  z = g_host.as<float>();
  std::transform(z, z + g_host.shape().elements(), z, [](float x) {
    return static_cast<float>(-std::log1p(std::exp(-double{x})) / 16);
  });
  const std::string what = fmt::format("gated_linear_attention_inputs {} tokens", tokens);
  call(0);
  verify(what + ", q", take(context, q[0]), q_host, 0);
  verify(what + ", g", take(context, g[0]), g_host, 2e-6);
  bench.time(
      what, {static_cast<double>(tokens * kDim) * (4.0 * kHeads + 4.0 * kKvHeads + 8.0 * kKvHeads)},
      call);
}

inline void linear_attention(CudaBench& bench, int64_t tokens, int64_t dim) {
  Context& context = bench.context();
  std::vector<LinearInputs> in;
  std::vector<Tensor> o;
  for (int i = 0; i < kSets; ++i) {
    in.emplace_back(bench, tokens, dim);
    o.emplace_back(kActivations, in[0].q.shape(), context.device());
  }
  const auto call = [&](int i) {
    const auto set = static_cast<size_t>(i);
    LinearInputs& x = in[set];
    gated_linear_attention(context, {x.q, x.k, x.v, x.g, x.state, o[set], kScale});
  };
  const std::string what = fmt::format("gated_linear_attention {} tokens{}", tokens,
                                       dim == kDim ? "" : fmt::format(", head_dim {}", dim));
  LinearInputs one(context, in[0]);
  call(0);
  Tensor expected(DType::kF32, one.q.shape());
  gated_linear_attention_reference({one.q, one.k, one.v, one.g, one.state, expected, kScale});
  verify(what + ", o", take_heads(context, o[0], kVerifiedHead * kGroup, kGroup), expected, 5e-3);
  verify(what + ", state", LinearInputs::one_state(context, in[0].state), one.state, 5e-3);
  const auto count = static_cast<double>(tokens);
  const auto d = static_cast<double>(dim);
  const double chunk = 64;  // of the chunked form; a single token needs the recurrent one
  const double operations = tokens == 1
                                ? 4.0 * (kHeads + kKvHeads) * d * d / 2
                                : count * 2 * (kHeads * (d * d + chunk * d) + kKvHeads * d * d);
  bench.time(what,
             {count * d * (4.0 * kHeads + 4.0 * kKvHeads + 4.0 * kKvHeads) + 8.0 * kKvHeads * d * d,
              operations},
             call);
}

// Gradients of the inputs of linear attention.
struct Gradients {
  Tensor d_q, d_k, d_v, d_g, d_state;

  Gradients(const LinearInputs& in, const Device& device)
      : d_q(in.q.dtype(), in.q.shape(), device),
        d_k(in.k.dtype(), in.k.shape(), device),
        d_v(in.v.dtype(), in.v.shape(), device),
        d_g(DType::kF32, in.g.shape(), device),
        d_state(DType::kF32, in.state.shape(), device) {}
};

inline GatedLinearAttentionBackwardArgs backward_args(const LinearInputs& in, const Tensor& d_o,
                                                      Gradients& out) {
  GatedLinearAttentionBackwardArgs args{in.q,    in.k,    in.v,    in.g,   d_o,
                                        out.d_q, out.d_k, out.d_v, out.d_g};
  args.state = in.state, args.d_state = out.d_state, args.scale = kScale;
  return args;
}

inline void verify_backward(Context& context, const std::string& what, const LinearInputs& in,
                            const Tensor& d_o, const Gradients& got) {
  const LinearInputs one(context, in);
  const Tensor d_o_host = take_heads(context, d_o, kVerifiedHead * kGroup, kGroup);
  Gradients expected(one, Device{});
  gated_linear_attention_backward_reference(backward_args(one, d_o_host, expected));
  double changes = 0;  // errors of d_g are shares of k * d_k where that is larger
  for (int64_t i = 0; i < one.k.shape().elements(); ++i) {
    const double change = double{one.k.as<float>()[i]} * expected.d_k.as<float>()[i];
    changes += change * change;
  }
  const auto head = [&](const Tensor& all) { return take_heads(context, all, kVerifiedHead, 1); };
  verify(what + ", d_q", take_heads(context, got.d_q, kVerifiedHead * kGroup, kGroup), expected.d_q,
         5e-3);
  verify(what + ", d_k", head(got.d_k), expected.d_k, 5e-3);
  verify(what + ", d_v", head(got.d_v), expected.d_v, 5e-3);
  verify(what + ", d_g", head(got.d_g), expected.d_g, 5e-3, std::sqrt(changes));
  verify(what + ", d_state", LinearInputs::one_state(context, got.d_state), expected.d_state, 5e-3);
}

// As training needs it: the gradients alone, and after a forward pass.
inline void linear_attention_backward(CudaBench& bench, int64_t tokens) {
  Context& context = bench.context();
  std::vector<LinearInputs> in;
  std::vector<Tensor> d_o, o, states;
  std::vector<Gradients> out;
  for (int i = 0; i < kSets; ++i) {
    in.emplace_back(bench, tokens, kDim);
    d_o.push_back(bench.random(in[0].q.shape(), kActivations));
    o.emplace_back(kActivations, in[0].q.shape(), context.device());
    states.push_back(bench.random(in[0].state.shape(), DType::kF32));
    out.emplace_back(in.back(), context.device());
  }
  const auto backward = [&](int i) {
    const auto set = static_cast<size_t>(i);
    gated_linear_attention_backward(context, backward_args(in[set], d_o[set], out[set]));
  };
  const auto forward = [&](int i) {
    const auto set = static_cast<size_t>(i);
    const LinearInputs& x = in[set];
    gated_linear_attention(context, {x.q, x.k, x.v, x.g, states[set], o[set], kScale});
  };
  const std::string what = fmt::format("gated_linear_attention_backward {} tokens", tokens);
  backward(0);
  verify_backward(context, what, in[0], d_o[0], out[0]);
  const auto count = static_cast<double>(tokens);
  const double chunk = 64;
  const Work work{count * kDim * (6.0 * kHeads + 8.0 * kKvHeads + 8.0 * kKvHeads),
                  count * 2 * kDim * (kHeads * (2 * kDim + 2.5 * chunk) + 3.0 * kKvHeads * kDim)};
  const Work both{work.bytes + count * kDim * (4.0 * kHeads + 8.0 * kKvHeads),
                  work.operations + count * 2 * kDim * (kHeads * (kDim + chunk) + kKvHeads * kDim)};
  bench.time(what, work, backward);
  bench.time(fmt::format("gated_linear_attention and backward {} tokens", tokens), both,
             [&](int i) { forward(i), backward(i); });
}

}  // namespace spb::ops
