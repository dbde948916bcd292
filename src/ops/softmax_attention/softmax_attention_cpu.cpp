#include "ops/softmax_attention/softmax_attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/isa.h"

namespace spb::ops {
namespace {

// Positions per piece of work. More pieces for longer contexts, up to a number whose partial
// results stay small beside the cache itself. Depends on nothing but the number of positions, so
// that the result is the same on any number of threads.
constexpr int64_t kPiecePositions = 256;
constexpr int64_t kMaxPieces = 256;

struct Pieces {
  int64_t first;  // position
  int64_t total;  // positions
  int64_t size;   // a multiple of kKeyBlock
  int64_t count;
};

Pieces cut(int64_t first, int64_t total) {
  const int64_t wanted = std::clamp<int64_t>(total / kPiecePositions, 1, kMaxPieces);
  const int64_t size = ((total + wanted - 1) / wanted + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
  return {first, total, size, (total + size - 1) / size};
}

// Folds the softmax of later positions into that of earlier ones.
void merge(const QueryRows& into, const QueryRows& from) {
  for (int64_t r = 0; r < into.rows; ++r) {
    if (from.sum[r] == 0.0f) continue;  // nothing seen; a NaN sum is merged and so kept
    const float larger = into.max[r] >= from.max[r] ? into.max[r] : from.max[r];
    const float old_factor = std::exp(into.max[r] - larger);
    const float new_factor = std::exp(from.max[r] - larger);
    into.max[r] = larger;
    into.sum[r] = into.sum[r] * old_factor + from.sum[r] * new_factor;
    float* acc = into.acc + r * into.padded_dim;
    const float* other = from.acc + r * into.padded_dim;
    for (int64_t d = 0; d < into.padded_dim; ++d) {
      acc[d] = acc[d] * old_factor + other[d] * new_factor;
    }
  }
}

}  // namespace

AttentionShape::AttentionShape(const SoftmaxAttentionArgs& args)
    : tokens(args.q.shape()[0]),
      kv_heads(args.keys.shape()[0]),
      group(args.q.shape()[1] / kv_heads),
      head_dim(args.q.shape()[2]),
      padded_dim((head_dim + kLaneMultiple - 1) / kLaneMultiple * kLaneMultiple),
      capacity(args.keys.shape()[1]) {
  const int64_t context = args.first_position + tokens;
  window_size = args.window_size > 0 ? std::min(args.window_size, context) : context;
}

const SoftmaxAttentionKernels& softmax_attention_kernels() {
  return select_isa(isa_portable::kSoftmaxAttentionKernels, isa_avx2::kSoftmaxAttentionKernels,
                    isa_avx512::kSoftmaxAttentionKernels);
}

RingRows ring_rows(const ConstTensorView& cache, const AttentionShape& shape, int64_t kv_head) {
  return {cache.row(kv_head * shape.capacity), shape.capacity, shape.head_dim};
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

void softmax_attention_decode(Context& context, const SoftmaxAttentionArgs& args) {
  const AttentionShape shape(args);
  const SoftmaxAttentionKernels& kernels = softmax_attention_kernels();
  const int dtype = static_cast<int>(args.keys.dtype());
  const int64_t rows = shape.tokens * shape.group;
  const int64_t first = first_visible(shape, args.first_position);
  const Pieces pieces = cut(first, args.first_position + shape.tokens - first);

  const Arena::Scope scope(context.arena());
  Arena& arena = context.arena();
  float* queries = arena.allocate<float>(shape.kv_heads * rows * shape.head_dim);
  const int64_t partials = shape.kv_heads * pieces.count * rows;
  float* max = arena.allocate<float>(partials);
  float* sum = arena.allocate<float>(partials);
  float* acc = arena.allocate<float>(partials * shape.padded_dim);
  const int64_t packed_floats =
      kKeyBlock * (shape.head_dim + shape.padded_dim) + kScoreRows * kKeyBlock;
  float* packed = arena.allocate<float>(packed_floats * context.pool().threads());

  for (int64_t h = 0; h < shape.kv_heads; ++h) {
    gather_queries(args, shape, h, 0, shape.tokens, queries + h * rows * shape.head_dim);
  }
  const auto partial = [&](int64_t kv_head, int64_t piece) {
    const int64_t row = (kv_head * pieces.count + piece) * rows;
    return QueryRows{queries + kv_head * rows * shape.head_dim,
                     rows,
                     shape.group,
                     args.first_position,
                     shape.window_size,
                     shape.head_dim,
                     shape.padded_dim,
                     max + row,
                     sum + row,
                     acc + row * shape.padded_dim};
  };
  const auto attend_piece = [&](int64_t task, int thread) {
    const int64_t kv_head = task / pieces.count;
    const int64_t piece = task % pieces.count;
    const QueryRows query_rows = partial(kv_head, piece);
    reset(query_rows);
    float* keys = packed + packed_floats * thread;
    float* values = keys + kKeyBlock * shape.head_dim;
    float* scores = values + kKeyBlock * shape.padded_dim;
    const RingRows key_ring = ring_rows(args.keys, shape, kv_head);
    const RingRows value_ring = ring_rows(args.values, shape, kv_head);
    const int64_t begin = pieces.first + piece * pieces.size;
    const int64_t end = std::min(begin + pieces.size, pieces.first + pieces.total);
    for (int64_t position = begin; position < end; position += kKeyBlock) {
      const int64_t count = std::min<int64_t>(kKeyBlock, end - position);
      kernels.pack_keys[dtype](key_ring, position, count, shape.padded_dim, keys);
      kernels.pack_values[dtype](value_ring, position, count, shape.padded_dim, values);
      kernels.attend(query_rows, {keys, values, position, count}, scores);
    }
  };
  context.pool().parallel_for(shape.kv_heads * pieces.count, 1,
                              [&](int64_t begin, int64_t end, int thread) {
                                for (int64_t i = begin; i < end; ++i) attend_piece(i, thread);
                              });
  context.pool().parallel_for(shape.kv_heads, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t h = begin; h < end; ++h) {
      const QueryRows all = partial(h, 0);
      for (int64_t piece = 1; piece < pieces.count; ++piece) merge(all, partial(h, piece));
      write_outputs(args, shape, h, 0, all);
    }
  });
}

}  // namespace spb::ops
