#include <algorithm>
#include <cmath>

#include "ops/softmax_attention/softmax_attention_cpu.h"

namespace spb::ops {
namespace {

// Positions per piece of work. More pieces for longer contexts, up to a number whose partial
// results stay small beside the cache itself. Depends on nothing but the number of positions, so
// that the result is the same on any number of threads.
constexpr int64_t kPiecePositions = 256;
constexpr int64_t kMaxPieces = 256;

// Up to this many queries read the cache faster as it is than packed.
constexpr int64_t kUnpackedRows = 16;

struct Pieces {
  int64_t size;  // positions, a multiple of kKeyBlock
  int64_t count;
};

Pieces cut(int64_t positions) {
  if (positions == 0) return {kKeyBlock, 0};
  const int64_t wanted = std::clamp<int64_t>(positions / kPiecePositions, 1, kMaxPieces);
  const int64_t size = ((positions + wanted - 1) / wanted + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
  return {size, (positions + size - 1) / size};
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

class Decode {
 public:
  Decode(Context& context, const SoftmaxAttentionArgs& args);
  void run();

 private:
  QueryRows partial(int64_t kv_head, int64_t piece) const;
  void attend(int64_t kv_head, int64_t piece, float* scratch) const;
  void attend_unpacked(const QueryRows& rows, const KeySource& source, int64_t kv_head,
                       int64_t begin, int64_t end, float* scores) const;
  void attend_packed(const QueryRows& rows, const KeySource& source, int64_t kv_head, int64_t begin,
                     int64_t end, float* scratch) const;

  Context& context_;
  const SoftmaxAttentionArgs& args_;
  AttentionShape shape_;
  const SoftmaxAttentionKernels& kernels_;
  int64_t rows_;   // queries per key/value head
  int64_t first_;  // position of the cache that the earliest query sees
  Pieces sink_pieces_;
  Pieces cache_pieces_;
  int64_t pieces_;  // those of the sinks come first
  float* queries_;
  float* max_;
  float* sum_;
  float* acc_;
  float* scratch_;
  int64_t scratch_floats_;
};

Decode::Decode(Context& context, const SoftmaxAttentionArgs& args)
    : context_(context),
      args_(args),
      shape_(args),
      kernels_(softmax_attention_kernels()),
      rows_(shape_.tokens * shape_.group),
      first_(shape_.cache.first_visible(args.first_position)),
      sink_pieces_(cut(shape_.sinks.end)),
      cache_pieces_(cut(shape_.cache.end - first_)),
      pieces_(sink_pieces_.count + cache_pieces_.count) {
  Arena& arena = context.arena();
  queries_ = arena.allocate<float>(shape_.kv_heads * rows_ * shape_.head_dim);
  const int64_t partials = shape_.kv_heads * pieces_ * rows_;
  max_ = arena.allocate<float>(partials);
  sum_ = arena.allocate<float>(partials);
  acc_ = arena.allocate<float>(partials * shape_.padded_dim);
  scratch_floats_ = rows_ <= kUnpackedRows
                        ? rows_ * kKeyBlock
                        : (kScoreRows + shape_.head_dim + shape_.padded_dim) * kKeyBlock;
  scratch_ = arena.allocate<float>(scratch_floats_ * context.pool().threads());
}

void Decode::run() {
  for (int64_t h = 0; h < shape_.kv_heads; ++h) {
    gather_queries(args_, shape_, h, 0, shape_.tokens, queries_ + h * rows_ * shape_.head_dim);
  }
  context_.pool().parallel_for(
      shape_.kv_heads * pieces_, 1, [&](int64_t begin, int64_t end, int thread) {
        for (int64_t i = begin; i < end; ++i) {
          attend(i / pieces_, i % pieces_, scratch_ + scratch_floats_ * thread);
        }
      });
  context_.pool().parallel_for(shape_.kv_heads, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t h = begin; h < end; ++h) {
      const QueryRows all = partial(h, 0);
      for (int64_t piece = 1; piece < pieces_; ++piece) merge(all, partial(h, piece));
      write_outputs(args_, shape_, h, 0, all);
    }
  });
}

QueryRows Decode::partial(int64_t kv_head, int64_t piece) const {
  const int64_t row = (kv_head * pieces_ + piece) * rows_;
  return {queries_ + kv_head * rows_ * shape_.head_dim,
          rows_,
          shape_.group,
          0,
          0,  // known when facing a source
          shape_.head_dim,
          shape_.padded_dim,
          max_ + row,
          sum_ + row,
          acc_ + row * shape_.padded_dim};
}

void Decode::attend(int64_t kv_head, int64_t piece, float* scratch) const {
  const bool of_sinks = piece < sink_pieces_.count;
  const KeySource& source = of_sinks ? shape_.sinks : shape_.cache;
  const QueryRows rows = facing(source, partial(kv_head, piece));
  reset(rows);
  const int64_t size = (of_sinks ? sink_pieces_ : cache_pieces_).size;
  const int64_t begin = of_sinks ? piece * size : first_ + (piece - sink_pieces_.count) * size;
  const int64_t end = std::min(begin + size, source.end);
  if (rows_ <= kUnpackedRows) {
    attend_unpacked(rows, source, kv_head, begin, end, scratch);
  } else {
    attend_packed(rows, source, kv_head, begin, end, scratch);
  }
}

// Goes straight through the cache, in two runs where the ring wraps.
void Decode::attend_unpacked(const QueryRows& rows, const KeySource& source, int64_t kv_head,
                             int64_t begin, int64_t end, float* scores) const {
  const float* key_scales = head_scales(source.key_scales, kv_head);
  const float* value_scales = head_scales(source.value_scales, kv_head);
  while (begin < end) {
    const int64_t slot = begin % source.capacity();
    const int64_t count = std::min(end - begin, source.capacity() - slot);
    const int64_t row = kv_head * source.capacity() + slot;
    kernels_.attend_unpacked[shape_.dtype](
        rows,
        {source.keys.row(row), source.values.row(row),
         key_scales != nullptr ? key_scales + slot : nullptr,
         value_scales != nullptr ? value_scales + slot : nullptr, begin, count},
        scores);
    begin += count;
  }
}

void Decode::attend_packed(const QueryRows& rows, const KeySource& source, int64_t kv_head,
                           int64_t begin, int64_t end, float* scratch) const {
  float* keys = scratch;
  float* values = keys + kKeyBlock * shape_.head_dim;
  float* scores = values + kKeyBlock * shape_.padded_dim;
  const RingRows key_ring = ring_rows(source.keys, source.key_scales, kv_head);
  const RingRows value_ring = ring_rows(source.values, source.value_scales, kv_head);
  for (int64_t position = begin; position < end; position += kKeyBlock) {
    const int64_t count = std::min<int64_t>(kKeyBlock, end - position);
    kernels_.pack_keys[shape_.dtype](key_ring, position, count, shape_.padded_dim, keys);
    kernels_.pack_values[shape_.dtype](value_ring, position, count, shape_.padded_dim, values);
    kernels_.attend_packed(rows, {keys, values, position, count}, scores);
  }
}

}  // namespace

void softmax_attention_decode(Context& context, const SoftmaxAttentionArgs& args) {
  const Arena::Scope scope(context.arena());
  Decode(context, args).run();
}

}  // namespace spb::ops
