#include "ops/softmax_attention/softmax_attention_cpu.h"

#include <algorithm>
#include <limits>

#include "core/isa.h"

namespace spb::ops {
namespace {

KeySource sink_source(const SoftmaxAttentionArgs& args) {
  if (!args.sink_keys.defined()) return {};
  const int64_t sinks = args.sink_keys.shape()[1];
  return {args.sink_keys, args.sink_values, args.sink_key_scales,     args.sink_value_scales,
          sinks,          sinks - 1,        sinks + args.q.shape()[0]};
}

KeySource cache_source(const SoftmaxAttentionArgs& args) {
  if (!args.keys.defined()) return {};
  const int64_t end = args.first_position + args.q.shape()[0];
  const int64_t window_size = args.window_size > 0 ? std::min(args.window_size, end) : end;
  return {args.keys, args.values,         args.key_scales, args.value_scales,
          end,       args.first_position, window_size};
}

const ConstTensorView& any_keys(const SoftmaxAttentionArgs& args) {
  return args.keys.defined() ? args.keys : args.sink_keys;
}

}  // namespace

AttentionShape::AttentionShape(const SoftmaxAttentionArgs& args)
    : tokens(args.q.shape()[0]),
      kv_heads(any_keys(args).shape()[0]),
      group(args.q.shape()[1] / kv_heads),
      head_dim(args.q.shape()[2]),
      padded_dim((head_dim + kLaneMultiple - 1) / kLaneMultiple * kLaneMultiple),
      dtype(static_cast<int>(any_keys(args).dtype())),
      sinks(sink_source(args)),
      cache(cache_source(args)) {}

const SoftmaxAttentionKernels& softmax_attention_kernels() {
  return select_isa(isa_portable::kSoftmaxAttentionKernels, isa_avx2::kSoftmaxAttentionKernels,
                    isa_avx512::kSoftmaxAttentionKernels);
}

const float* head_scales(const ConstTensorView& scales, int64_t kv_head) {
  return scales.defined() ? scales.row_as<float>(kv_head) : nullptr;
}

RingRows ring_rows(const ConstTensorView& keys, const ConstTensorView& scales, int64_t kv_head) {
  const Shape& shape = keys.shape();
  return {keys.row(kv_head * shape[1]), head_scales(scales, kv_head), shape[1], shape[2]};
}

void gather_queries(const SoftmaxAttentionArgs& args, const AttentionShape& shape, int64_t kv_head,
                    int64_t first_token, int64_t tokens, float* out) {
  const int64_t width = shape.group * shape.head_dim;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t row = ((first_token + t) * shape.kv_heads + kv_head) * shape.group;
    const float* q = args.q.row_as<float>(row);
    for (int64_t i = 0; i < width; ++i) out[t * width + i] = q[i] * args.scale;
  }
}

void reset(const QueryRows& rows) {
  std::fill_n(rows.max, rows.rows, -std::numeric_limits<float>::infinity());
  std::fill_n(rows.sum, rows.rows, 0.0f);
  std::fill_n(rows.acc, rows.rows * rows.padded_dim, 0.0f);
}

void write_outputs(const SoftmaxAttentionArgs& args, const AttentionShape& shape, int64_t kv_head,
                   int64_t first_token, const QueryRows& rows) {
  for (int64_t r = 0; r < rows.rows; ++r) {
    const int64_t token = first_token + r / shape.group;
    const int64_t head = kv_head * shape.group + r % shape.group;
    float* o = args.o.row_as<float>(token * shape.kv_heads * shape.group + head);
    const float* acc = rows.acc + r * rows.padded_dim;
    const float factor = 1.0f / rows.sum[r];
    for (int64_t d = 0; d < shape.head_dim; ++d) o[d] = acc[d] * factor;
  }
}

}  // namespace spb::ops
