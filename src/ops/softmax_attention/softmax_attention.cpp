#include "ops/softmax_attention/softmax_attention.h"

#include <algorithm>
#include <cmath>

#include "core/tensor_check.h"
#include "ops/softmax_attention/softmax_attention_cpu.h"

namespace spb::ops {
namespace {

constexpr const char* kAttention = "softmax_attention";
constexpr const char* kAppend = "append_to_cache";

// Positions beyond this would overflow the arithmetic on them; no cache is that long.
constexpr int64_t kMaxPosition = int64_t{1} << 48;

// From here on tiles of queries share packed keys better than pieces of positions do.
constexpr int64_t kPrefillTokens = 32;

void check_contiguous(const char* operation, const char* argument, const ConstTensorView& tensor) {
  check(tensor.contiguous(),
        "{}: {}: expected contiguous rows, got a row stride of {} bytes for {}", operation,
        argument, tensor.row_stride_bytes(), tensor.row_bytes_used());
}

void check_cache(const char* operation, const char* argument, const ConstTensorView& cache,
                 DType dtype, const Shape& shape) {
  check(is_float(dtype), "{}: {}: expected f32, f16 or bf16, got {}", operation, argument,
        name(dtype));
  check_tensor(operation, argument, cache, dtype, shape);
  check_contiguous(operation, argument, cache);
}

void check_positions(const char* operation, int64_t first_position, int64_t tokens) {
  check(first_position >= 0 && first_position <= kMaxPosition - tokens,
        "{}: first_position: expected 0 to {}, got {}", operation, kMaxPosition - tokens,
        first_position);
}

void check_keys(const SoftmaxAttentionArgs& args) {
  const int64_t head_dim = args.q.shape()[2];
  const Shape& keys = args.keys.shape();
  check(keys.rank() == 3 && keys[0] > 0 && keys[1] > 0 && keys[2] == head_dim,
        "{}: keys: expected [kv heads, capacity, {}], got {}", kAttention, head_dim, keys);
  check_cache(kAttention, "keys", args.keys, args.keys.dtype(), keys);
  check_cache(kAttention, "values", args.values, args.keys.dtype(), keys);
}

void check_sinks(const SoftmaxAttentionArgs& args, bool has_keys) {
  const int64_t head_dim = args.q.shape()[2];
  const Shape& sinks = args.sink_keys.shape();
  const DType dtype = has_keys ? args.keys.dtype() : args.sink_keys.dtype();
  check(sinks.rank() == 3 && sinks[0] > 0 && sinks[1] > 0 && sinks[2] == head_dim,
        "{}: sink_keys: expected [kv heads, sinks, {}], got {}", kAttention, head_dim, sinks);
  check(!has_keys || sinks[0] == args.keys.shape()[0],
        "{}: sink_keys: expected the {} kv heads of keys, got {}", kAttention, args.keys.shape()[0],
        sinks);
  check_cache(kAttention, "sink_keys", args.sink_keys, dtype, sinks);
  check_cache(kAttention, "sink_values", args.sink_values, dtype, sinks);
}

void check_visible(const SoftmaxAttentionArgs& args, bool has_keys) {
  const int64_t tokens = args.q.shape()[0];
  check_positions(kAttention, args.first_position, tokens);
  check(args.window_size >= 0, "{}: window_size: expected 0 (none) or more, got {}", kAttention,
        args.window_size);
  if (!has_keys) {
    check(args.first_position == 0 && args.window_size == 0,
          "{}: keys: expected a cache for first_position {} and window {}, got only sinks",
          kAttention, args.first_position, args.window_size);
    return;
  }
  const int64_t context = args.first_position + tokens;
  const bool windowed = args.window_size > 0 && args.window_size < context;
  const int64_t needed = std::min(context, windowed ? args.window_size + tokens - 1 : context);
  const int64_t capacity = args.keys.shape()[1];
  check(capacity >= needed,
        "{}: keys: expected capacity >= {} (first_position {}, {} tokens, window {}), got {}",
        kAttention, needed, args.first_position, tokens, args.window_size, capacity);
}

// A view with a shape and no memory is meant to be there.
bool absent(const ConstTensorView& tensor) {
  return !tensor.defined() && tensor.shape().rank() == 0;
}

void check_args(const SoftmaxAttentionArgs& args) {
  const Shape& q = args.q.shape();
  check(q.rank() == 3 && q[1] > 0 && q[2] > 0,
        "{}: q: expected [tokens, query heads, head_dim], got {}", kAttention, q);
  const bool has_sinks = !absent(args.sink_keys) || !absent(args.sink_values);
  const bool has_keys = !has_sinks || !absent(args.keys) || !absent(args.values);
  if (has_keys) check_keys(args);
  if (has_sinks) check_sinks(args, has_keys);
  const int64_t kv_heads = (has_keys ? args.keys : args.sink_keys).shape()[0];
  check(q[1] % kv_heads == 0, "{}: q: expected query heads a multiple of {} kv heads, got {}",
        kAttention, kv_heads, q[1]);
  check_tensor(kAttention, "q", args.q, DType::kF32, q);
  check_tensor(kAttention, "o", args.o, DType::kF32, q);
  check_contiguous(kAttention, "q", args.q);
  check_contiguous(kAttention, "o", args.o);
  check_same_or_no_overlap(kAttention, "q", args.q, "o", args.o);
  check_no_overlap(kAttention, "keys", args.keys, "o", args.o);
  check_no_overlap(kAttention, "values", args.values, "o", args.o);
  check_no_overlap(kAttention, "sink_keys", args.sink_keys, "o", args.o);
  check_no_overlap(kAttention, "sink_values", args.sink_values, "o", args.o);
  check(std::isfinite(args.scale), "{}: scale: expected a finite number, got {}", kAttention,
        args.scale);
  check_visible(args, has_keys);
}

}  // namespace

void softmax_attention(Context& context, const SoftmaxAttentionArgs& args) {
  check_args(args);
  if (args.q.shape()[0] == 0) return;
  if (args.q.shape()[0] < kPrefillTokens) {
    softmax_attention_decode(context, args);
  } else {
    softmax_attention_prefill(context, args);
  }
}

void append_to_cache(Context& context, const AppendToCacheArgs& args) {
  const Shape& k = args.k.shape();
  const Shape& keys = args.keys.shape();
  check(k.rank() == 3 && k[1] > 0 && k[2] > 0,
        "{}: k: expected [tokens, kv heads, head_dim], got {}", kAppend, k.to_string());
  check(keys.rank() == 3 && keys[0] == k[1] && keys[1] > 0 && keys[2] == k[2],
        "{}: keys: expected [{}, capacity, {}], got {}", kAppend, k[1], k[2], keys.to_string());
  check_tensor(kAppend, "k", args.k, DType::kF32, k);
  check_tensor(kAppend, "v", args.v, DType::kF32, k);
  check_cache(kAppend, "keys", args.keys, args.keys.dtype(), keys);
  check_cache(kAppend, "values", args.values, args.keys.dtype(), keys);
  check_no_overlap(kAppend, "keys", args.keys, "values", args.values);
  for (const TensorView& cache : {args.keys, args.values}) {
    check_no_overlap(kAppend, "k", args.k, "cache", cache);
    check_no_overlap(kAppend, "v", args.v, "cache", cache);
  }
  check_positions(kAppend, args.first_position, k[0]);
  check(k[0] <= keys[1], "{}: k: expected at most {} tokens (the capacity), got {}", kAppend,
        keys[1], k[0]);
  const auto round_row = softmax_attention_kernels().round_row[static_cast<int>(args.keys.dtype())];
  context.pool().parallel_for(k[0] * k[1], 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t position = args.first_position + i / k[1];
      const int64_t slot = i % k[1] * keys[1] + position % keys[1];
      round_row(args.k.row_as<float>(i), args.keys.row(slot), k[2]);
      round_row(args.v.row_as<float>(i), args.values.row(slot), k[2]);
    }
  });
}

}  // namespace spb::ops
