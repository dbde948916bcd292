#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward_sequences.h"

namespace spb::ops {
namespace {

using State = std::vector<double>;  // [key_dim, value_dim]

constexpr int64_t kBlock = 64;  // tokens whose states are held at once

// The gradients of one kv head of a sequence.
class HeadGradients {
 public:
  HeadGradients(const GatedLinearAttentionBackwardArgs& args, int64_t kv_head)
      : args_(args),
        kv_head_(kv_head),
        kv_heads_(args.k.shape()[1]),
        group_(args.q.shape()[1] / kv_heads_),
        key_dim_(args.k.shape()[2]),
        value_dim_(args.v.shape()[2]) {}

  void run() const {
    const int64_t tokens = args_.q.shape()[0];
    std::vector<State> starts;  // the state before every block
    State state = load(args_.state);
    for (int64_t t = 0; t < tokens; ++t) {
      if (t % kBlock == 0) starts.push_back(state);
      advance(t, state);
    }
    State gradient = args_.d_final_state.defined() ? load(args_.d_final_state)
                                                   : State(state.size());  // of the state after t
    for (int64_t block = static_cast<int64_t>(starts.size()) - 1; block >= 0; --block) {
      const int64_t first = block * kBlock;
      const int64_t count = std::min(kBlock, tokens - first);
      std::vector<State> states = {starts[block]};
      for (int64_t i = 0; i < count; ++i) {
        states.push_back(states.back());
        advance(first + i, states.back());
      }
      for (int64_t i = count - 1; i >= 0; --i) {
        step(first + i, states[i], states[i + 1], gradient);
      }
    }
    if (!args_.d_state.defined()) return;
    std::transform(gradient.begin(), gradient.end(),
                   args_.d_state.row_as<float>(kv_head_ * key_dim_),
                   [](double x) { return static_cast<float>(x); });
  }

 private:
  State load(const ConstTensorView& tensor) const {
    const float* from = tensor.row_as<float>(kv_head_ * key_dim_);
    return {from, from + key_dim_ * value_dim_};
  }
  int64_t row(int64_t t) const { return t * kv_heads_ + kv_head_; }

  double decay(int64_t t, int64_t c) const {
    const float g = args_.g.row_as<float>(row(t))[c];
    return std::exp(double{g < kMinLogDecay ? kMinLogDecay : g});
  }

  void advance(int64_t t, State& state) const {
    const float* k = args_.k.row_as<float>(row(t));
    const float* v = args_.v.row_as<float>(row(t));
    for (int64_t c = 0; c < key_dim_; ++c) {
      const double factor = decay(t, c);
      for (int64_t d = 0; d < value_dim_; ++d) {
        double& s = state[c * value_dim_ + d];
        s = factor * s + double{k[c]} * v[d];
      }
    }
  }

  // Token t, between the states before and after it; `gradient` goes from what later tokens make of
  // the state after it to what all make of the state before it.
  void step(int64_t t, const State& before, const State& after, State& gradient) const {
    for (int64_t h = row(t) * group_; h < (row(t) + 1) * group_; ++h) {
      read(h, after, gradient);
    }
    write(t, gradient);
    const float* g = args_.g.row_as<float>(row(t));
    for (int64_t c = 0; c < key_dim_; ++c) {
      const double factor = decay(t, c);
      double sum = 0;
      for (int64_t d = 0; d < value_dim_; ++d) {
        double& x = gradient[c * value_dim_ + d];
        sum += before[c * value_dim_ + d] * x;
        x *= factor;
      }
      const bool floored = g[c] < kMinLogDecay;
      args_.d_g.row_as<float>(row(t))[c] = floored ? 0.0f : static_cast<float>(factor * sum);
    }
  }

  // One query head, row h of the queries.
  void read(int64_t h, const State& state, State& gradient) const {
    const float* q = args_.q.row_as<float>(h);
    const float* d_o = args_.d_o.row_as<float>(h);
    for (int64_t c = 0; c < key_dim_; ++c) {
      double sum = 0;
      for (int64_t d = 0; d < value_dim_; ++d) {
        sum += state[c * value_dim_ + d] * d_o[d];
        gradient[c * value_dim_ + d] += double{args_.scale} * q[c] * d_o[d];
      }
      args_.d_q.row_as<float>(h)[c] = static_cast<float>(args_.scale * sum);
    }
  }

  void write(int64_t t, const State& gradient) const {
    const float* k = args_.k.row_as<float>(row(t));
    const float* v = args_.v.row_as<float>(row(t));
    std::vector<double> d_v(static_cast<size_t>(value_dim_));
    for (int64_t c = 0; c < key_dim_; ++c) {
      double sum = 0;
      for (int64_t d = 0; d < value_dim_; ++d) {
        sum += gradient[c * value_dim_ + d] * v[d];
        d_v[d] += gradient[c * value_dim_ + d] * k[c];
      }
      args_.d_k.row_as<float>(row(t))[c] = static_cast<float>(sum);
    }
    std::transform(d_v.begin(), d_v.end(), args_.d_v.row_as<float>(row(t)),
                   [](double x) { return static_cast<float>(x); });
  }

  const GatedLinearAttentionBackwardArgs& args_;
  int64_t kv_head_;
  int64_t kv_heads_;
  int64_t group_;
  int64_t key_dim_;
  int64_t value_dim_;
};

}  // namespace

void gated_linear_attention_backward_reference(const GatedLinearAttentionBackwardArgs& args) {
  for_each_sequence(args, [](const GatedLinearAttentionBackwardArgs& one) {
    for (int64_t head = 0; head < one.k.shape()[1]; ++head) HeadGradients(one, head).run();
  });
}

}  // namespace spb::ops
