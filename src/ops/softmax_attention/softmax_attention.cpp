#include "ops/softmax_attention/softmax_attention.h"

#include <algorithm>
#include <cmath>

#include "core/int8_row.h"
#include "core/tensor_check.h"
#include "ops/softmax_attention/softmax_attention_batch.h"
#include "ops/softmax_attention/softmax_attention_cpu.h"
#include "ops/softmax_attention/softmax_attention_cuda.h"

namespace spb::ops {
namespace {

constexpr const char* kAttention = "softmax_attention";
constexpr const char* kAppend = "append_to_cache";

// Positions beyond this would overflow the arithmetic on them; no cache is that long.
constexpr int64_t kMaxPosition = int64_t{1} << 48;

// Scales that are checked together, and pieces of them that are worth waking a thread.
constexpr int64_t kScalePiece = 4096;
constexpr int64_t kScaleGrain = 4;

// From here on tiles of queries share packed keys better than pieces of positions do.
constexpr int64_t kPrefillTokens = 32;

void check_contiguous(const char* operation, const char* argument, const ConstTensorView& tensor) {
  check(tensor.contiguous(),
        "{}: {}: expected contiguous rows, got a row stride of {} bytes for {}", operation,
        argument, tensor.row_stride_bytes(), tensor.row_bytes_used());
}

void check_cache(const char* operation, const char* argument, const ConstTensorView& cache,
                 DType dtype, const Shape& shape) {
  check(is_float(dtype) || dtype == DType::kI8, "{}: {}: expected f32, f16, bf16 or i8, got {}",
        operation, argument, name(dtype));
  check_tensor(operation, argument, cache, dtype, shape);
  check_contiguous(operation, argument, cache);
}

// A view with a shape and no memory is meant to be there.
bool absent(const ConstTensorView& tensor) {
  return !tensor.defined() && tensor.shape().rank() == 0;
}

// A scale for each row of a cache of codes, none for floats.
void check_scales(const char* operation, const char* argument, const ConstTensorView& scales,
                  const ConstTensorView& cache) {
  if (cache.dtype() != DType::kI8) {
    check(absent(scales), "{}: {}: expected none for a cache of {}, got {}", operation, argument,
          name(cache.dtype()), scales.shape());
    return;
  }
  check_tensor(operation, argument, scales, DType::kF32, Shape{cache.shape()[0], cache.shape()[1]});
  check_contiguous(operation, argument, scales);
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

void check_all_scales(const SoftmaxAttentionArgs& args) {
  check_scales(kAttention, "key_scales", args.key_scales, args.keys);
  check_scales(kAttention, "value_scales", args.value_scales, args.keys);
  check_scales(kAttention, "sink_key_scales", args.sink_key_scales, args.sink_keys);
  check_scales(kAttention, "sink_value_scales", args.sink_value_scales, args.sink_keys);
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

void check_outputs(const SoftmaxAttentionArgs& args) {
  check_tensor(kAttention, "o", args.o, args.q.dtype(), args.q.shape());
  check_contiguous(kAttention, "o", args.o);
  check_same_or_no_overlap(kAttention, "q", args.q, "o", args.o);
  check_no_overlap(kAttention, "keys", args.keys, "o", args.o);
  check_no_overlap(kAttention, "values", args.values, "o", args.o);
  check_no_overlap(kAttention, "sink_keys", args.sink_keys, "o", args.o);
  check_no_overlap(kAttention, "sink_values", args.sink_values, "o", args.o);
  check_no_overlap(kAttention, "key_scales", args.key_scales, "o", args.o);
  check_no_overlap(kAttention, "value_scales", args.value_scales, "o", args.o);
  check_no_overlap(kAttention, "sink_key_scales", args.sink_key_scales, "o", args.o);
  check_no_overlap(kAttention, "sink_value_scales", args.sink_value_scales, "o", args.o);
}

void check_args(const Device& device, const SoftmaxAttentionArgs& args) {
  const Shape& q = args.q.shape();
  check(q.rank() == 3 && q[1] > 0 && q[2] > 0,
        "{}: q: expected [tokens, query heads, head_dim], got {}", kAttention, q);
  const bool has_sinks = !absent(args.sink_keys) || !absent(args.sink_values);
  const bool has_keys = !has_sinks || !absent(args.keys) || !absent(args.values);
  if (has_keys) check_keys(args);
  if (has_sinks) check_sinks(args, has_keys);
  check_all_scales(args);
  const int64_t kv_heads = (has_keys ? args.keys : args.sink_keys).shape()[0];
  check(q[1] % kv_heads == 0, "{}: q: expected query heads a multiple of {} kv heads, got {}",
        kAttention, kv_heads, q[1]);
  check_activation(kAttention, "q", args.q, device, q);
  check_contiguous(kAttention, "q", args.q);
  check_outputs(args);
  check(std::isfinite(args.scale), "{}: scale: expected a finite number, got {}", kAttention,
        args.scale);
  check_visible(args, has_keys);
}

// The scales of `count` slots of a head from `slot` on.
void check_range(const char* argument, const ConstTensorView& scales, int64_t head, int64_t slot,
                 int64_t count) {
  const float* first = scales.row_as<float>(head) + slot;
  const auto good = [](float scale) {
    return scale >= kSmallestInt8Scale && scale <= kLargestInt8Scale;
  };
  int bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= static_cast<int>(!good(first[i]));
  if (bad == 0) return;
  const float* scale = std::find_if_not(first, first + count, good);
  fail(ErrorKind::kData, "{}: {}: head {}, slot {}: expected {} to {}, got {}", kAttention,
       argument, head, slot + (scale - first), kSmallestInt8Scale, kLargestInt8Scale, *scale);
}

// The scales of a source that some token sees.
void check_visible_scales(Context& context, const char* argument, const ConstTensorView& scales,
                          const KeySource& source) {
  if (!scales.defined()) return;
  const int64_t capacity = source.capacity();
  const int64_t first = source.first_visible(source.first_position);
  const int64_t pieces = (source.end - first + kScalePiece - 1) / kScalePiece;
  const auto check_piece = [&](int64_t piece) {
    int64_t position = first + piece % pieces * kScalePiece;
    const int64_t end = std::min(source.end, position + kScalePiece);
    while (position < end) {  // twice where the ring wraps
      const int64_t slot = position % capacity;
      const int64_t count = std::min(end - position, capacity - slot);
      check_range(argument, scales, piece / pieces, slot, count);
      position += count;
    }
  };
  context.pool().parallel_for(scales.shape()[0] * pieces, kScaleGrain,
                              [&](int64_t begin, int64_t stop, int) {
                                for (int64_t i = begin; i < stop; ++i) check_piece(i);
                              });
}

void check_visible_scales(Context& context, const SoftmaxAttentionArgs& args) {
  const AttentionShape shape(args);
  check_visible_scales(context, "key_scales", args.key_scales, shape.cache);
  check_visible_scales(context, "value_scales", args.value_scales, shape.cache);
  check_visible_scales(context, "sink_key_scales", args.sink_key_scales, shape.sinks);
  check_visible_scales(context, "sink_value_scales", args.sink_value_scales, shape.sinks);
}

}  // namespace

namespace {

void attend(Context& context, const SoftmaxAttentionArgs& args) {
  if (args.q.shape()[0] == 0) return;
  if (context.device().is_cuda()) return softmax_attention_cuda(context, args);
  check_visible_scales(context, args);
  if (args.q.shape()[0] < kPrefillTokens) {
    softmax_attention_decode(context, args);
  } else {
    softmax_attention_prefill(context, args);
  }
}

// The arguments of one sequence of a batch.
SoftmaxAttentionArgs alone(const SoftmaxAttentionArgs& args, int64_t first,
                           const CachedSequence& sequence) {
  SoftmaxAttentionArgs one = args;
  one.sequences = {};
  one.q = tokens_of(args.q, first, sequence.tokens);
  one.o = tokens_of(args.o, first, sequence.tokens);
  one.keys = sequence.keys;
  one.values = sequence.values;
  one.key_scales = sequence.key_scales;
  one.value_scales = sequence.value_scales;
  one.first_position = sequence.first_position;
  return one;
}

}  // namespace

void softmax_attention(Context& context, const SoftmaxAttentionArgs& args) {
  if (args.sequences.empty()) {
    check_args(context.device(), args);
    return attend(context, args);
  }
  check(absent(args.keys) && absent(args.values) && args.first_position == 0,
        "{}: keys: expected none beside those of the sequences", kAttention);
  check_batch(kAttention, args.sequences, args.q);
  for_each_sequence(args.sequences, [&](int64_t first, const CachedSequence& sequence) {
    check_args(context.device(), alone(args, first, sequence));
  });
  for_each_launch(context.device(), args.sequences, [&](int64_t first, auto sequences) {
    if (sequences.size() == 1) return attend(context, alone(args, first, sequences[0]));
    SoftmaxAttentionArgs batch = args;
    batch.sequences = sequences;
    batch.q = tokens_of(args.q, first, static_cast<int64_t>(sequences.size()));
    batch.o = tokens_of(args.o, first, static_cast<int64_t>(sequences.size()));
    softmax_attention_cuda(context, batch);
  });
}

namespace {

void check_separate(const AppendToCacheArgs& args) {
  check_no_overlap(kAppend, "keys", args.keys, "values", args.values);
  for (const TensorView& cache : {args.keys, args.values}) {
    check_no_overlap(kAppend, "k", args.k, "cache", cache);
    check_no_overlap(kAppend, "v", args.v, "cache", cache);
  }
  if (!args.key_scales.defined()) return;
  check_no_overlap(kAppend, "key_scales", args.key_scales, "value_scales", args.value_scales);
  for (const TensorView& scales : {args.key_scales, args.value_scales}) {
    check_no_overlap(kAppend, "k", args.k, "scales", scales);
    check_no_overlap(kAppend, "v", args.v, "scales", scales);
    check_no_overlap(kAppend, "keys", args.keys, "scales", scales);
    check_no_overlap(kAppend, "values", args.values, "scales", scales);
  }
}

void check_args(const Device& device, const AppendToCacheArgs& args) {
  const Shape& k = args.k.shape();
  const Shape& keys = args.keys.shape();
  check(k.rank() == 3 && k[1] > 0 && k[2] > 0,
        "{}: k: expected [tokens, kv heads, head_dim], got {}", kAppend, k.to_string());
  check(keys.rank() == 3 && keys[0] == k[1] && keys[1] > 0 && keys[2] == k[2],
        "{}: keys: expected [{}, capacity, {}], got {}", kAppend, k[1], k[2], keys.to_string());
  check_activation(kAppend, "k", args.k, device, k);
  check_tensor(kAppend, "v", args.v, args.k.dtype(), k);
  check_cache(kAppend, "keys", args.keys, args.keys.dtype(), keys);
  check_cache(kAppend, "values", args.values, args.keys.dtype(), keys);
  check_scales(kAppend, "key_scales", args.key_scales, args.keys);
  check_scales(kAppend, "value_scales", args.value_scales, args.keys);
  check_separate(args);
  check_positions(kAppend, args.first_position, k[0]);
  check(k[0] <= keys[1], "{}: k: expected at most {} tokens (the capacity), got {}", kAppend,
        keys[1], k[0]);
}

// Row i of k and v goes to a row of the cache.
void quantize_rows(const AppendToCacheArgs& args, int64_t i, int64_t slot) {
  const int64_t head_dim = args.k.shape()[2];
  args.key_scales.as<float>()[slot] = quantize_int8_row(
      "append_to_cache: k", i, args.k.row_as<float>(i), head_dim, args.keys.row_as<int8_t>(slot));
  args.value_scales.as<float>()[slot] = quantize_int8_row(
      "append_to_cache: v", i, args.v.row_as<float>(i), head_dim, args.values.row_as<int8_t>(slot));
}

void round_rows(const AppendToCacheArgs& args, int64_t i, int64_t slot) {
  const auto round_row = softmax_attention_kernels().round_row[static_cast<int>(args.keys.dtype())];
  round_row(args.k.row_as<float>(i), args.keys.row(slot), args.k.shape()[2]);
  round_row(args.v.row_as<float>(i), args.values.row(slot), args.k.shape()[2]);
}

void append(Context& context, const AppendToCacheArgs& args) {
  if (context.device().is_cuda()) return append_to_cache_cuda(context, args);
  const int64_t heads = args.k.shape()[1];
  const int64_t capacity = args.keys.shape()[1];
  const auto write = args.keys.dtype() == DType::kI8 ? quantize_rows : round_rows;
  context.pool().parallel_for(args.k.shape()[0] * heads, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t position = args.first_position + i / heads;
      write(args, i, i % heads * capacity + position % capacity);
    }
  });
}

AppendToCacheArgs alone(const AppendToCacheArgs& args, int64_t first,
                        const CachedSequence& sequence) {
  return {tokens_of(args.k, first, sequence.tokens),
          tokens_of(args.v, first, sequence.tokens),
          sequence.keys,
          sequence.values,
          sequence.first_position,
          sequence.key_scales,
          sequence.value_scales};
}

}  // namespace

void append_to_cache(Context& context, const AppendToCacheArgs& args) {
  if (args.sequences.empty()) {
    check_args(context.device(), args);
    return append(context, args);
  }
  check(absent(args.keys) && absent(args.values) && args.first_position == 0,
        "{}: keys: expected none beside those of the sequences", kAppend);
  check_batch(kAppend, args.sequences, args.k);
  for_each_sequence(args.sequences, [&](int64_t first, const CachedSequence& sequence) {
    check_args(context.device(), alone(args, first, sequence));
  });
  for_each_launch(context.device(), args.sequences, [&](int64_t first, auto sequences) {
    if (sequences.size() == 1) return append(context, alone(args, first, sequences[0]));
    AppendToCacheArgs batch = args;
    batch.sequences = sequences;
    batch.k = tokens_of(args.k, first, static_cast<int64_t>(sequences.size()));
    batch.v = tokens_of(args.v, first, static_cast<int64_t>(sequences.size()));
    append_to_cache_cuda(context, batch);
  });
}

}  // namespace spb::ops
