#include "core/simd/subnormals.h"
#include "core/simd/vec.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward_kernels.h"
#include "ops/gated_linear_attention/gated_linear_attention_gate.h"

namespace spb::SPB_ISA {
namespace {

using ops::GradientTokens;
using ops::kChannelTile;

constexpr int64_t kRow = kChannelTile;

// One register of channels of a tile, from `channel` on, `count` of which exist.
struct Lanes {
  int64_t channel;
  int64_t count;

  Vec load(const float* row) const { return load_up_to(row + channel, count); }
  Vec decay(const GradientTokens& tokens, int64_t t) const {
    return exp(load_gate(tokens.g + t * tokens.k_stride + channel, count));
  }
  void store(float* row, Vec x) const {
    if (count >= kLanes) {
      SPB_ISA::store(row + channel, x);
    } else {
      store_partial(row + channel, x, static_cast<int>(count));
    }
  }
};

// Sum over the columns of weights[d] * tile[d].
Vec weigh(const float* weights, const float* tile, int64_t columns) {
  Vec sums[4] = {};
  int64_t d = 0;
  for (; d + 4 <= columns; d += 4) {
    for (int i = 0; i < 4; ++i) {
      sums[i] = fma(broadcast(weights[d + i]), load(tile + (d + i) * kRow), sums[i]);
    }
  }
  for (; d < columns; ++d) sums[0] = fma(broadcast(weights[d]), load(tile + d * kRow), sums[0]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// to <- decay . from + k^T v
void advance_state(const GradientTokens& tokens, const Lanes& lanes, int64_t t, const float* from,
                   float* to) {
  const Vec decay = lanes.decay(tokens, t);
  const Vec k = lanes.load(tokens.k + t * tokens.k_stride);
  const float* v = tokens.v + t * tokens.v_stride;
  for (int64_t d = 0; d < tokens.value_dim; ++d) {
    store(to + d * kRow, fma(k, broadcast(v[d]), load(from + d * kRow) * decay));
  }
}

// What query head h of token t makes of the state after the token.
void add_query(const GradientTokens& tokens, const Lanes& lanes, int64_t t, int64_t h,
               float* gradient) {
  const float* d_o = tokens.d_o + t * tokens.o_stride + h * tokens.value_dim;
  const float* q = tokens.q + t * tokens.q_stride + h * tokens.key_dim;
  const Vec query = lanes.load(q) * broadcast(tokens.scale);
  for (int64_t d = 0; d < tokens.value_dim; ++d) {
    store(gradient + d * kRow, fma(query, broadcast(d_o[d]), load(gradient + d * kRow)));
  }
}

// Sum over the columns of before . gradient, which is then decayed.
Vec decay_gradient(int64_t columns, Vec decay, const float* before, float* gradient) {
  Vec sum = {};
  for (int64_t d = 0; d < columns; ++d) {
    const Vec x = load(gradient + d * kRow);
    sum = fma(load(before + d * kRow), x, sum);
    store(gradient + d * kRow, x * decay);
  }
  return sum * decay;
}

void advance_lanes(const GradientTokens& tokens, const Lanes& lanes, float* state) {
  for (int64_t t = 0; t < tokens.tokens; ++t) {
    advance_state(tokens, lanes, t, state, state);
    for (int64_t h = 0; h < tokens.group; ++h) {
      const float* d_o = tokens.d_o + t * tokens.o_stride + h * tokens.value_dim;
      const Vec d_q = weigh(d_o, state, tokens.value_dim) * broadcast(tokens.scale);
      lanes.store(tokens.d_q + t * tokens.q_stride + h * tokens.key_dim, d_q);
    }
  }
}

void advance(const GradientTokens& tokens, int64_t channel, float* state) {
  const FlushSubnormals flush;
  for (int64_t c = 0; c < kChannelTile && channel + c < tokens.key_dim; c += kLanes) {
    advance_lanes(tokens, {channel + c, tokens.key_dim - channel - c}, state + c);
  }
}

void go_back_lanes(const GradientTokens& tokens, const Lanes& lanes, float* states, float* gradient,
                   float* d_v) {
  const int64_t tile = tokens.value_dim * kRow;
  for (int64_t t = 0; t + 1 < tokens.tokens; ++t) {
    advance_state(tokens, lanes, t, states + t * tile, states + (t + 1) * tile);
  }
  for (int64_t t = tokens.tokens - 1; t >= 0; --t) {
    for (int64_t h = 0; h < tokens.group; ++h) add_query(tokens, lanes, t, h, gradient);
    const float* v = tokens.v + t * tokens.v_stride;
    lanes.store(tokens.d_k + t * tokens.k_stride, weigh(v, gradient, tokens.value_dim));
    const Vec k = lanes.load(tokens.k + t * tokens.k_stride);
    float* sums = d_v + t * tokens.value_dim;
    for (int64_t d = 0; d < tokens.value_dim; ++d) {
      sums[d] += reduce_add(k * load(gradient + d * kRow));
    }
    const Vec gate = lanes.load(tokens.g + t * tokens.k_stride);
    const Vec d_g =
        decay_gradient(tokens.value_dim, lanes.decay(tokens, t), states + t * tile, gradient);
    lanes.store(tokens.d_g + t * tokens.k_stride,
                gate < broadcast(ops::kMinLogDecay) ? Vec{} : d_g);
  }
}

void go_back(const GradientTokens& tokens, int64_t channel, const float* state, float* gradient,
             float* states, float* d_v) {
  const FlushSubnormals flush;
  for (int64_t i = 0; i < tokens.value_dim * kRow; ++i) states[i] = state[i];
  for (int64_t i = 0; i < tokens.tokens * tokens.value_dim; ++i) d_v[i] = 0;
  for (int64_t c = 0; c < kChannelTile && channel + c < tokens.key_dim; c += kLanes) {
    go_back_lanes(tokens, {channel + c, tokens.key_dim - channel - c}, states + c, gradient + c,
                  d_v);
  }
}

}  // namespace

extern const ops::BackwardKernels kBackwardKernels;
const ops::BackwardKernels kBackwardKernels = {advance, go_back};

}  // namespace spb::SPB_ISA
