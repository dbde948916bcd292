#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "core/block_formats.h"
#include "ops/softmax_attention/softmax_attention.h"

namespace spb::ops {
namespace {

// Codes of 8 bits have a scale for each row.
std::vector<double> widen(const ConstTensorView& tensor, const ConstTensorView& scales = {}) {
  const Shape& shape = tensor.shape();
  std::vector<float> row(static_cast<size_t>(shape.last()));
  std::vector<double> out;
  out.reserve(static_cast<size_t>(shape.elements()));
  for (int64_t i = 0; i < shape.rows(); ++i) {
    if (tensor.dtype() == DType::kI8) {
      const double scale = scales.as<float>()[i];
      const auto* codes = tensor.row_as<int8_t>(i);
      std::transform(codes, codes + shape.last(), std::back_inserter(out),
                     [&](int8_t code) { return scale * code; });
    } else {
      dequantize_row(tensor.dtype(), tensor.row(i), row.data(), shape.last());
      out.insert(out.end(), row.begin(), row.end());
    }
  }
  return out;
}

// Rows of keys and values, widened.
struct Rows {
  std::vector<double> keys;
  std::vector<double> values;
  int64_t count = 0;  // per key/value head

  Rows(const ConstTensorView& key_view, const ConstTensorView& value_view,
       const ConstTensorView& key_scales, const ConstTensorView& value_scales) {
    if (!key_view.defined()) return;
    keys = widen(key_view, key_scales);
    values = widen(value_view, value_scales);
    count = key_view.shape()[1];
  }
};

struct Seen {
  const double* key;
  const double* value;
};

// One query over all that it sees.
void attend(const double* q, const std::vector<Seen>& all, int64_t head_dim, double scale,
            float* o) {
  std::vector<double> scores;
  double max = -std::numeric_limits<double>::infinity();
  for (const Seen& seen : all) {
    double score = 0;
    for (int64_t d = 0; d < head_dim; ++d) score += q[d] * seen.key[d];
    scores.push_back(score * scale);
    max = std::max(max, scores.back());
  }
  double sum = 0;
  std::vector<double> output(static_cast<size_t>(head_dim));
  for (size_t j = 0; j < all.size(); ++j) {
    const double weight = std::exp(scores[j] - max);
    sum += weight;
    for (int64_t d = 0; d < head_dim; ++d) output[d] += weight * all[j].value[d];
  }
  for (int64_t d = 0; d < head_dim; ++d) o[d] = static_cast<float>(output[d] / sum);
}

}  // namespace

void softmax_attention_reference(const SoftmaxAttentionArgs& args) {
  const Shape& shape = args.q.shape();
  const int64_t heads = shape[1];
  const int64_t head_dim = shape[2];
  const ConstTensorView& any_keys = args.keys.defined() ? args.keys : args.sink_keys;
  const int64_t group = heads / any_keys.shape()[0];
  const std::vector<double> q = widen(args.q);
  const Rows cache(args.keys, args.values, args.key_scales, args.value_scales);
  const Rows sinks(args.sink_keys, args.sink_values, args.sink_key_scales, args.sink_value_scales);
  for (int64_t row = 0; row < shape[0] * heads; ++row) {
    const int64_t kv_head = row % heads / group;
    std::vector<Seen> all;
    const auto see = [&](const Rows& rows, int64_t index) {
      const int64_t at = (kv_head * rows.count + index) * head_dim;
      all.push_back({rows.keys.data() + at, rows.values.data() + at});
    };
    for (int64_t j = 0; j < sinks.count; ++j) see(sinks, j);
    const int64_t position = args.first_position + row / heads;
    const int64_t first =
        args.window_size > 0 ? std::max<int64_t>(0, position - args.window_size + 1) : 0;
    for (int64_t j = first; j <= position && cache.count > 0; ++j) see(cache, j % cache.count);
    attend(q.data() + row * head_dim, all, head_dim, args.scale, args.o.row_as<float>(row));
  }
}

}  // namespace spb::ops
