#include <algorithm>

#include "ops/softmax_attention/softmax_attention_cpu.h"

namespace spb::ops {
namespace {

// Tokens whose running softmax is held at once, and positions packed at once: they bound scratch
// memory whatever the lengths are.
constexpr int64_t kSpanTokens = 1024;
constexpr int64_t kSpanPositions = 1024;
// Rows of one piece of work: enough to reuse a packed block from L1 many times.
constexpr int64_t kTileRows = 96;

class Prefill {
 public:
  Prefill(Context& context, const SoftmaxAttentionArgs& args)
      : context_(context), args_(args), shape_(args), kernels_(softmax_attention_kernels()) {
    const int64_t tokens = std::min(shape_.tokens, kSpanTokens);
    const int64_t rows = shape_.kv_heads * tokens * shape_.group;
    const int64_t positions = shape_.kv_heads * kSpanPositions;
    Arena& arena = context.arena();
    queries_ = arena.allocate<float>(rows * shape_.head_dim);
    max_ = arena.allocate<float>(rows);
    sum_ = arena.allocate<float>(rows);
    acc_ = arena.allocate<float>(rows * shape_.padded_dim);
    keys_ = arena.allocate<float>(positions * shape_.head_dim);
    values_ = arena.allocate<float>(positions * shape_.padded_dim);
    scores_ = arena.allocate<float>(kScoreRows * kKeyBlock * context.pool().threads());
    tile_tokens_ = std::max<int64_t>(1, kTileRows / shape_.group);
  }

  // Tokens [first_token, first_token + tokens), at most kSpanTokens.
  void attend_tokens(int64_t first_token, int64_t tokens) {
    first_token_ = first_token;
    tokens_ = tokens;
    tiles_ = (tokens + tile_tokens_ - 1) / tile_tokens_;
    each_tile([&](int64_t kv_head, int64_t tile, int) { start(kv_head, tile); });
    const int64_t first_position = args_.first_position + first_token;
    const int64_t end = first_position + tokens;
    for (int64_t position = first_visible(shape_, first_position); position < end;
         position += kSpanPositions) {
      const int64_t count = std::min(kSpanPositions, end - position);
      pack(position, count);
      each_tile([&](int64_t kv_head, int64_t tile, int thread) {
        attend(kv_head, tile, position, count, thread);
      });
    }
    each_tile([&](int64_t kv_head, int64_t tile, int) {
      write_outputs(args_, shape_, kv_head, first_token_ + tile * tile_tokens_,
                    rows(kv_head, tile));
    });
  }

 private:
  // Late tiles first: with causal attention they have most to do.
  template <typename Body>
  void each_tile(Body&& body) {
    context_.pool().parallel_dynamic(shape_.kv_heads * tiles_, [&](int64_t task, int thread) {
      body(task % shape_.kv_heads, tiles_ - 1 - task / shape_.kv_heads, thread);
    });
  }

  QueryRows rows(int64_t kv_head, int64_t tile) const {
    const int64_t token = tile * tile_tokens_;
    const int64_t tokens = std::min(tile_tokens_, tokens_ - token);
    const int64_t row = (kv_head * tokens_ + token) * shape_.group;
    return {queries_ + row * shape_.head_dim,
            tokens * shape_.group,
            shape_.group,
            args_.first_position + first_token_ + token,
            shape_.window_size,
            shape_.head_dim,
            shape_.padded_dim,
            max_ + row,
            sum_ + row,
            acc_ + row * shape_.padded_dim};
  }

  void start(int64_t kv_head, int64_t tile) {
    const QueryRows tile_rows = rows(kv_head, tile);
    gather_queries(args_, shape_, kv_head, first_token_ + tile * tile_tokens_,
                   tile_rows.rows / shape_.group, const_cast<float*>(tile_rows.q));
    reset(tile_rows);
  }

  float* packed_keys(int64_t kv_head, int64_t offset) const {
    return keys_ + (kv_head * kSpanPositions + offset) * shape_.head_dim;
  }
  float* packed_values(int64_t kv_head, int64_t offset) const {
    return values_ + (kv_head * kSpanPositions + offset) * shape_.padded_dim;
  }

  void pack(int64_t position, int64_t count) {
    const int dtype = static_cast<int>(args_.keys.dtype());
    const int64_t blocks = (count + kKeyBlock - 1) / kKeyBlock;
    context_.pool().parallel_for(shape_.kv_heads * blocks, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t kv_head = i / blocks;
        const int64_t offset = i % blocks * kKeyBlock;
        const int64_t keys = std::min<int64_t>(kKeyBlock, count - offset);
        kernels_.pack_keys[dtype](ring_rows(args_.keys, shape_, kv_head), position + offset, keys,
                                  shape_.padded_dim, packed_keys(kv_head, offset));
        kernels_.pack_values[dtype](ring_rows(args_.values, shape_, kv_head), position + offset,
                                    keys, shape_.padded_dim, packed_values(kv_head, offset));
      }
    });
  }

  void attend(int64_t kv_head, int64_t tile, int64_t position, int64_t count, int thread) {
    const QueryRows tile_rows = rows(kv_head, tile);
    const int64_t last = tile_rows.first_position + tile_rows.rows / shape_.group - 1;
    const int64_t first = first_visible(shape_, tile_rows.first_position);
    const int64_t begin = std::max<int64_t>(0, first - position) / kKeyBlock * kKeyBlock;
    const int64_t end = std::min(count, last + 1 - position);
    for (int64_t offset = begin; offset < end; offset += kKeyBlock) {
      kernels_.attend(tile_rows,
                      {packed_keys(kv_head, offset), packed_values(kv_head, offset),
                       position + offset, std::min<int64_t>(kKeyBlock, count - offset)},
                      scores_ + kScoreRows * kKeyBlock * thread);
    }
  }

  Context& context_;
  const SoftmaxAttentionArgs& args_;
  AttentionShape shape_;
  const SoftmaxAttentionKernels& kernels_;
  int64_t first_token_ = 0;
  int64_t tokens_ = 0;
  int64_t tiles_ = 0;
  int64_t tile_tokens_ = 1;
  float* queries_;
  float* max_;
  float* sum_;
  float* acc_;
  float* keys_;
  float* values_;
  float* scores_;
};

}  // namespace

void softmax_attention_prefill(Context& context, const SoftmaxAttentionArgs& args) {
  const Arena::Scope scope(context.arena());
  const int64_t tokens = args.q.shape()[0];
  Prefill prefill(context, args);
  for (int64_t token = 0; token < tokens; token += kSpanTokens) {
    prefill.attend_tokens(token, std::min(kSpanTokens, tokens - token));
  }
}

}  // namespace spb::ops
