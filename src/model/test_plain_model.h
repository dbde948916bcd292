// PlainModel: the whole family written down once more, in double, token by token, from the
// formulas alone. Slow and obvious: what the forward pass is compared with in tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "core/block_formats.h"
#include "model/weights.h"

namespace spb::model {

class PlainModel {
 public:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;

  PlainModel(const ModelConfig& config, const ModelWeights& weights) : c_(config), w_(weights) {}

  // Logits after every token.
  Rows logits(const std::vector<int32_t>& tokens) const {
    const auto sinks = static_cast<size_t>(c_.sink_tokens);
    Rows x;
    for (size_t s = 0; s < sinks; ++s) x.push_back(row(w_.sinks, static_cast<int64_t>(s)));
    for (const int32_t token : tokens) x.push_back(row(w_.embeddings, token));
    for (size_t layer = 0; layer < c_.layers.size(); ++layer) x = run_layer(layer, x);
    Rows out;
    const ConstTensorView head = c_.tied_embeddings ? w_.embeddings : w_.lm_head;
    for (size_t t = sinks; t < x.size(); ++t) out.push_back(times(head, norm(x[t], w_.norm)));
    return out;
  }

 private:
  // Row i of a tensor; of a stack of matrices counted through.
  static Row row(ConstTensorView tensor, int64_t i) {
    std::vector<float> values(static_cast<size_t>(tensor.shape().last()));
    dequantize_row(tensor.dtype(), tensor.row(i), values.data(), tensor.shape().last());
    return {values.begin(), values.end()};
  }

  static double dot(const Row& a, const Row& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  }

  // Rows [first, first + count) of a matrix times x.
  static Row times_rows(ConstTensorView matrix, int64_t first, int64_t count, const Row& x) {
    Row y;
    for (int64_t i = 0; i < count; ++i) y.push_back(dot(row(matrix, first + i), x));
    return y;
  }
  static Row times(ConstTensorView matrix, const Row& x) {
    return times_rows(matrix, 0, matrix.shape().rows(), x);
  }
  static Row times(const LinearWeights& linear, const Row& x) {
    Row y = times(linear.weight, x);
    if (!linear.bias.defined()) return y;
    const Row bias = row(linear.bias, 0);
    for (size_t i = 0; i < y.size(); ++i) y[i] += bias[i];
    return y;
  }

  Row norm(const Row& x, ConstTensorView weight) const {
    const Row factors = row(weight, 0);
    const double scale = 1 / std::sqrt(dot(x, x) / static_cast<double>(x.size()) + c_.norm_eps);
    Row y;
    for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * scale * factors[i]);
    return y;
  }

  static double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

  Row part(const Row& x, int64_t head) const {
    const auto begin = x.begin() + head * c_.head_dim;
    return {begin, begin + c_.head_dim};
  }

  Rows run_layer(size_t layer, Rows x) const {
    const LayerWeights& w = w_.layers[layer];
    Rows normed, q, k, v;
    for (const Row& r : x) {
      normed.push_back(norm(r, w.attn_norm));
      q.push_back(times(w.q, normed.back()));
      k.push_back(times(w.k, normed.back()));
      v.push_back(times(w.v, normed.back()));
    }
    Rows mixed(x.size(), Row(static_cast<size_t>(c_.query_size()), 0.0));
    const std::vector<Mixer>& mixers = c_.layers[layer].mixers;
    for (size_t branch = 0; branch < mixers.size(); ++branch) {
      const Rows heads = mixers[branch] == Mixer::kLinear ? linear(w, normed, q, k, v)
                                                          : softmax(mixers[branch], q, k, v);
      add_branch(c_.layers[layer], w, branch, heads, mixed);
    }
    for (size_t t = 0; t < x.size(); ++t) {
      add(x[t], times(w.o, mixed[t]));
      if (c_.layers[layer].feed_forward != FeedForward::kNone) {
        add(x[t], network(c_.layers[layer], w, norm(x[t], w.mlp_norm)));
      }
    }
    return x;
  }

  static void add(Row& to, const Row& from, double factor = 1) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += factor * from[i];
  }

  void add_branch(const LayerConfig& layer, const LayerWeights& w, size_t branch, const Rows& heads,
                  Rows& mixed) const {
    const auto kind = static_cast<size_t>(layer.mixers[branch]);
    const ConstTensorView weight = w.head_norms[kind];
    double factor = layer.parallel() ? c_.branch_weights[kind] : 1.0;
    if (w.branch_weights.defined()) factor = row(w.branch_weights, 0)[branch];
    for (size_t t = 0; t < heads.size(); ++t) {
      for (int64_t h = 0; h < c_.num_heads; ++h) {
        const Row head = part(heads[t], h);
        const Row out = weight.defined() ? norm(head, weight) : head;
        for (int64_t d = 0; d < c_.head_dim; ++d) {
          mixed[t][static_cast<size_t>(h * c_.head_dim + d)] +=
              factor * out[static_cast<size_t>(d)];
        }
      }
    }
  }

  Row rotated(const Row& x, int64_t position) const {
    Row y = x;
    const int64_t half = c_.head_dim / 2;
    for (size_t head = 0; head < x.size(); head += static_cast<size_t>(c_.head_dim)) {
      for (int64_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(position) *
                             std::pow(c_.rope_theta, -2.0 * static_cast<double>(j) /
                                                         static_cast<double>(c_.head_dim));
        const size_t a = head + static_cast<size_t>(j);
        const size_t b = a + static_cast<size_t>(half);
        y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
        y[b] = x[a] * std::sin(angle) + x[b] * std::cos(angle);
      }
    }
    return y;
  }

  // Rows 0 to S - 1 are sinks: every row sees them all, they see nothing else.
  bool visible(Mixer mixer, int64_t query, int64_t key) const {
    const int64_t sinks = c_.sink_tokens;
    if (key < sinks) return true;
    if (query < sinks || key > query) return false;
    return mixer == Mixer::kFull || query - key < c_.visible_window();
  }

  Rows softmax(Mixer mixer, const Rows& q, const Rows& k, const Rows& v) const {
    const auto count = static_cast<int64_t>(q.size());
    Rows rq, rk, out;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t position = std::max<int64_t>(0, t - c_.sink_tokens);
      rq.push_back(rotated(q[static_cast<size_t>(t)], position));
      rk.push_back(rotated(k[static_cast<size_t>(t)], position));
    }
    for (int64_t t = 0; t < count; ++t) {
      Row heads;
      for (int64_t h = 0; h < c_.num_heads; ++h) {
        const Row head = attend(mixer, t, h, rq[static_cast<size_t>(t)], rk, v);
        heads.insert(heads.end(), head.begin(), head.end());
      }
      out.push_back(heads);
    }
    return out;
  }

  // One head of row t.
  Row attend(Mixer mixer, int64_t t, int64_t h, const Row& q, const Rows& k, const Rows& v) const {
    const int64_t kv_head = h / (c_.num_heads / c_.num_kv_heads);
    Row sum(static_cast<size_t>(c_.head_dim), 0.0);
    double total = 0;
    for (size_t j = 0; j < k.size(); ++j) {
      if (!visible(mixer, t, static_cast<int64_t>(j))) continue;
      const double score =
          dot(part(q, h), part(k[j], kv_head)) / std::sqrt(static_cast<double>(c_.head_dim));
      total += std::exp(score);
      add(sum, part(v[j], kv_head), std::exp(score));
    }
    for (double& s : sum) s /= total;
    return sum;
  }

  double feature(double z) const {
    return c_.feature_map == ops::FeatureMap::kRelu ? std::max(z, 0.0) : sigmoid(z);
  }

  // Decay of every key channel of a token.
  Row decay(const LayerWeights& w, const Row& normed, const Row& k) const {
    Row out;
    if (c_.tied_gate) {
      for (const double z : k) out.push_back(1 - sigmoid(z));
    } else {
      for (const double z : times(w.gate_up, times(w.gate_down, normed))) {
        out.push_back(std::pow(sigmoid(z), 1 / c_.gate_logit_normalizer));
      }
    }
    return out;
  }

  // States of all key/value heads, [key, value] each.
  using States = std::vector<Rows>;

  Rows linear(const LayerWeights& w, const Rows& normed, const Rows& q, const Rows& k,
              const Rows& v) const {
    const auto d = static_cast<size_t>(c_.head_dim);
    States states(static_cast<size_t>(c_.num_kv_heads), Rows(d, Row(d, 0.0)));
    Rows out;
    for (size_t t = 0; t < q.size(); ++t) {
      const Row alpha = decay(w, normed[t], k[t]);
      for (int64_t h = 0; h < c_.num_kv_heads; ++h) {
        write_state(states[static_cast<size_t>(h)], part(alpha, h), part(k[t], h), part(v[t], h));
      }
      Row heads;
      for (int64_t h = 0; h < c_.num_heads; ++h) {
        const auto kv_head = static_cast<size_t>(h / (c_.num_heads / c_.num_kv_heads));
        const Row head = read_state(states[kv_head], part(q[t], h));
        heads.insert(heads.end(), head.begin(), head.end());
      }
      out.push_back(heads);
    }
    return out;
  }

  void write_state(Rows& state, const Row& alpha, const Row& k, const Row& v) const {
    for (size_t a = 0; a < k.size(); ++a) {
      for (double& s : state[a]) s *= alpha[a];
      add(state[a], v, feature(k[a]));
    }
  }

  Row read_state(const Rows& state, const Row& q) const {
    Row out(q.size(), 0.0);
    const double scale = 1 / std::sqrt(static_cast<double>(c_.head_dim));
    for (size_t a = 0; a < q.size(); ++a) add(out, state[a], scale * feature(q[a]));
    return out;
  }

  static Row swiglu(const Row& gate, const Row& up) {
    Row y;
    for (size_t i = 0; i < gate.size(); ++i) y.push_back(gate[i] * sigmoid(gate[i]) * up[i]);
    return y;
  }

  Row network(const LayerConfig& layer, const LayerWeights& w, const Row& x) const {
    if (layer.feed_forward == FeedForward::kDense) {
      return times(w.dense.down, swiglu(times(w.dense.gate, x), times(w.dense.up, x)));
    }
    Row y(x.size(), 0.0);
    if (w.shared.down.weight.defined()) {
      y = times(w.shared.down, swiglu(times(w.shared.gate, x), times(w.shared.up, x)));
    }
    for (const auto& [expert, p] : chosen(times(w.router, x))) {
      const int64_t f = c_.moe.expert_size;
      const Row inner = swiglu(times_rows(w.experts.gate.weight, expert * f, f, x),
                               times_rows(w.experts.up.weight, expert * f, f, x));
      const auto hidden = static_cast<int64_t>(x.size());
      add(y, times_rows(w.experts.down.weight, expert * hidden, hidden, inner), p);
    }
    return y;
  }

  std::map<int64_t, double> chosen(const Row& logits) const {
    std::vector<int64_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    double total = 0;
    for (const double z : logits) total += std::exp(z);
    std::map<int64_t, double> found;
    double sum = 0;
    for (int64_t i = 0; i < c_.moe.experts_per_token; ++i) {
      const int64_t expert = order[static_cast<size_t>(i)];
      const double z = logits[static_cast<size_t>(expert)];
      const bool softmax = c_.moe.score == ops::RouterScore::kSoftmax;
      found[expert] = softmax ? std::exp(z) / total : sigmoid(z);
      sum += found[expert];
    }
    if (c_.moe.renormalize) {
      for (auto& entry : found) entry.second /= sum;
    }
    return found;
  }

  const ModelConfig& c_;
  const ModelWeights& w_;
};

}  // namespace spb::model
