#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_sequences.h"

namespace spb::ops {
namespace {

void run_sequence(const GatedLinearAttentionArgs& args) {
  const int64_t tokens = args.q.shape()[0];
  const int64_t kv_heads = args.k.shape()[1];
  const int64_t group = args.q.shape()[1] / kv_heads;
  const int64_t key_dim = args.k.shape()[2];
  const int64_t value_dim = args.v.shape()[2];
  const auto mapped = [&](float x) { return args.rectify && x < 0 ? 0.0 : double{x}; };
  for (int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
    float* stored = args.state.row_as<float>(kv_head * key_dim);
    std::vector<double> state(stored, stored + key_dim * value_dim);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t row = t * kv_heads + kv_head;
      const float* k = args.k.row_as<float>(row);
      const float* v = args.v.row_as<float>(row);
      const float* g = args.g.row_as<float>(row);
      for (int64_t c = 0; c < key_dim; ++c) {
        const double decay = std::exp(double{g[c] < kMinLogDecay ? kMinLogDecay : g[c]});
        for (int64_t d = 0; d < value_dim; ++d) {
          double& s = state[c * value_dim + d];
          s = decay * s + mapped(k[c]) * v[d];
        }
      }
      for (int64_t h = row * group; h < (row + 1) * group; ++h) {
        const float* q = args.q.row_as<float>(h);
        std::vector<double> output(static_cast<size_t>(value_dim));
        for (int64_t c = 0; c < key_dim; ++c) {
          for (int64_t d = 0; d < value_dim; ++d)
            output[d] += mapped(q[c]) * state[c * value_dim + d];
        }
        float* o = args.o.row_as<float>(h);
        for (int64_t d = 0; d < value_dim; ++d) o[d] = static_cast<float>(args.scale * output[d]);
      }
    }
    std::transform(state.begin(), state.end(), stored,
                   [](double s) { return static_cast<float>(s); });
  }
}

}  // namespace

void gated_linear_attention_reference(const GatedLinearAttentionArgs& args) {
  if (args.boundary_interval == 0) return for_each_sequence(args, run_sequence);
  for_each_interval(args, [](const GatedLinearAttentionArgs& part, TensorView place) {
    run_sequence(part);
    if (!place.defined()) return;
    std::memcpy(place.data(), part.state.data(), static_cast<size_t>(place.bytes()));
  });
}

}  // namespace spb::ops
