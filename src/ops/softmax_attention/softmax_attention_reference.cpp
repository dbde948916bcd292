#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/softmax_attention/softmax_attention.h"

namespace spb::ops {
namespace {

template <typename T>
void widen_as(const ConstTensorView& tensor, std::vector<double>& out) {
  for (int64_t row = 0; row < tensor.shape().rows(); ++row) {
    const T* values = tensor.row_as<T>(row);
    for (int64_t i = 0; i < tensor.shape().last(); ++i) out.push_back(to_float(values[i]));
  }
}

std::vector<double> widen(const ConstTensorView& tensor) {
  std::vector<double> out;
  out.reserve(static_cast<size_t>(tensor.shape().elements()));
  switch (tensor.dtype()) {
    case DType::kF16: widen_as<f16>(tensor, out); break;
    case DType::kBF16: widen_as<bf16>(tensor, out); break;
    default: widen_as<float>(tensor, out); break;
  }
  return out;
}

}  // namespace

void softmax_attention_reference(const SoftmaxAttentionArgs& args) {
  const Shape& shape = args.q.shape();
  const int64_t heads = shape[1];
  const int64_t head_dim = shape[2];
  const int64_t group = heads / args.keys.shape()[0];
  const int64_t capacity = args.keys.shape()[1];
  const std::vector<double> q = widen(args.q);
  const std::vector<double> keys = widen(args.keys);
  const std::vector<double> values = widen(args.values);
  for (int64_t row = 0; row < shape[0] * heads; ++row) {
    const int64_t position = args.first_position + row / heads;
    const int64_t first =
        args.window_size > 0 ? std::max<int64_t>(0, position - args.window_size + 1) : 0;
    const auto cache_row = [&](int64_t j) {
      return (row % heads / group * capacity + j % capacity) * head_dim;
    };
    std::vector<double> weights;
    double max = -std::numeric_limits<double>::infinity();
    for (int64_t j = first; j <= position; ++j) {
      double score = 0;
      for (int64_t d = 0; d < head_dim; ++d) {
        score += q[row * head_dim + d] * keys[cache_row(j) + d];
      }
      weights.push_back(score * args.scale);
      max = std::max(max, weights.back());
    }
    double sum = 0;
    std::vector<double> output(static_cast<size_t>(head_dim));
    for (int64_t j = first; j <= position; ++j) {
      const double weight = std::exp(weights[j - first] - max);
      sum += weight;
      for (int64_t d = 0; d < head_dim; ++d) output[d] += weight * values[cache_row(j) + d];
    }
    float* o = args.o.row_as<float>(row);
    for (int64_t d = 0; d < head_dim; ++d) o[d] = static_cast<float>(output[d] / sum);
  }
}

}  // namespace spb::ops
