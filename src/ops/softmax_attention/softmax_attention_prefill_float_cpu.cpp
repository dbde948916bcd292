#include <algorithm>

#include "ops/softmax_attention/softmax_attention_prefill.h"

namespace spb::ops {
namespace {

// Rows of one piece of work: enough to reuse a packed block from L1 many times.
constexpr int64_t kTileRows = 96;

class FloatEngine : public PrefillEngine {
 public:
  FloatEngine(Context& context, const SoftmaxAttentionArgs& args, const AttentionShape& shape,
              int64_t most_tokens, int64_t most_positions)
      : args_(args),
        shape_(shape),
        kernels_(softmax_attention_kernels()),
        tile_tokens_(std::max<int64_t>(1, kTileRows / shape.group)),
        most_positions_(most_positions) {
    const int64_t rows = shape.kv_heads * most_tokens * shape.group;
    const int64_t positions = shape.kv_heads * most_positions;
    Arena& arena = context.arena();
    queries_ = arena.allocate<float>(rows * shape.head_dim);
    max_ = arena.allocate<float>(rows);
    sum_ = arena.allocate<float>(rows);
    acc_ = arena.allocate<float>(rows * shape.padded_dim);
    keys_ = arena.allocate<float>(positions * shape.head_dim);
    values_ = arena.allocate<float>(positions * shape.padded_dim);
    scores_ = arena.allocate<float>(kScoreRows * kKeyBlock * context.pool().threads());
  }

  int64_t tiles(const TokenSpan& tokens) const override {
    return (tokens.count + tile_tokens_ - 1) / tile_tokens_;
  }

  void start(const TokenSpan& tokens, int64_t kv_head, int64_t tile) override {
    const QueryRows tile_rows = rows(tokens, kv_head, tile);
    gather_queries(args_, shape_, kv_head, tokens.first + tile * tile_tokens_,
                   tile_rows.rows / shape_.group, queries(tokens, kv_head, tile));
    reset(tile_rows);
  }

  void pack(const PositionSpan& span, int64_t kv_head, int64_t offset) override {
    const int64_t count = std::min<int64_t>(kKeyBlock, span.count - offset);
    const int64_t position = span.first + offset;
    const KeySource& source = *span.source;
    kernels_.pack_keys[shape_.dtype](ring_rows(source.keys, source.key_scales, kv_head), position,
                                     count, shape_.padded_dim, packed_keys(kv_head, offset));
    kernels_.pack_values[shape_.dtype](ring_rows(source.values, source.value_scales, kv_head),
                                       position, count, shape_.padded_dim,
                                       packed_values(kv_head, offset));
  }

  void attend(const TokenSpan& tokens, const PositionSpan& span, int64_t kv_head, int64_t tile,
              int thread) override {
    const QueryRows tile_rows = facing(*span.source, rows(tokens, kv_head, tile));
    const int64_t last = tile_rows.first_position + tile_rows.rows / shape_.group - 1;
    const int64_t first = span.source->first_visible(tile_rows.first_position);
    const int64_t begin = std::max<int64_t>(0, first - span.first) / kKeyBlock * kKeyBlock;
    const int64_t end = std::min(span.count, last + 1 - span.first);
    for (int64_t offset = begin; offset < end; offset += kKeyBlock) {
      const int64_t count = std::min<int64_t>(kKeyBlock, span.count - offset);
      kernels_.attend_packed(tile_rows,
                             {packed_keys(kv_head, offset), packed_values(kv_head, offset),
                              span.first + offset, count},
                             scores_ + kScoreRows * kKeyBlock * thread);
    }
  }

  void finish(const TokenSpan& tokens, int64_t kv_head, int64_t tile, int) override {
    write_outputs(args_, shape_, kv_head, tokens.first + tile * tile_tokens_,
                  rows(tokens, kv_head, tile));
  }

 private:
  int64_t first_row(const TokenSpan& tokens, int64_t kv_head, int64_t tile) const {
    return (kv_head * tokens.count + tile * tile_tokens_) * shape_.group;
  }
  float* queries(const TokenSpan& tokens, int64_t kv_head, int64_t tile) const {
    return queries_ + first_row(tokens, kv_head, tile) * shape_.head_dim;
  }
  QueryRows rows(const TokenSpan& tokens, int64_t kv_head, int64_t tile) const {
    const int64_t token = tile * tile_tokens_;
    const int64_t row = first_row(tokens, kv_head, tile);
    return {queries(tokens, kv_head, tile),
            std::min(tile_tokens_, tokens.count - token) * shape_.group,
            shape_.group,
            tokens.first + token,
            0,  // known when facing a source
            shape_.head_dim,
            shape_.padded_dim,
            max_ + row,
            sum_ + row,
            acc_ + row * shape_.padded_dim};
  }
  float* packed_keys(int64_t kv_head, int64_t offset) const {
    return keys_ + (kv_head * most_positions_ + offset) * shape_.head_dim;
  }
  float* packed_values(int64_t kv_head, int64_t offset) const {
    return values_ + (kv_head * most_positions_ + offset) * shape_.padded_dim;
  }

  const SoftmaxAttentionArgs& args_;
  const AttentionShape& shape_;
  const SoftmaxAttentionKernels& kernels_;
  int64_t tile_tokens_;
  int64_t most_positions_;
  float* queries_;
  float* max_;
  float* sum_;
  float* acc_;
  float* keys_;
  float* values_;
  float* scores_;
};

}  // namespace

std::unique_ptr<PrefillEngine> make_float_engine(Context& context, const SoftmaxAttentionArgs& args,
                                                 const AttentionShape& shape, int64_t most_tokens,
                                                 int64_t most_positions) {
  return std::make_unique<FloatEngine>(context, args, shape, most_tokens, most_positions);
}

}  // namespace spb::ops
