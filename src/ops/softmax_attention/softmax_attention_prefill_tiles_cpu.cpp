#include <algorithm>
#include <atomic>
#include <limits>

#include "ops/softmax_attention/softmax_attention_prefill.h"

namespace spb::ops {
namespace {

constexpr float kLog2E = 1.44269504f;  // the tiles work with powers of two

class TileEngine : public PrefillEngine {
 public:
  TileEngine(Context& context, const SoftmaxAttentionArgs& args, const AttentionShape& shape,
             int64_t most_tokens, int64_t most_positions)
      : args_(args),
        shape_(shape),
        tiles_(*softmax_attention_tiles()),
        dims_((shape.head_dim + kTileDims - 1) / kTileDims * kTileDims),
        most_tiles_((most_tokens * shape.group + kTileQueries - 1) / kTileQueries),
        most_positions_(most_positions) {
    Arena& arena = context.arena();
    const int64_t rows = shape.kv_heads * most_tiles_ * kTileQueries;
    high_queries_ = arena.allocate<uint16_t>(rows * dims_);
    low_queries_ = arena.allocate<uint16_t>(rows * dims_);
    max_ = arena.allocate<float>(rows);
    sum_ = arena.allocate<float>(rows);
    acc_ = arena.allocate<float>(rows * dims_);
    const int64_t packed = shape.kv_heads * most_positions * dims_;
    high_keys_ = arena.allocate<uint16_t>(packed);
    high_values_ = arena.allocate<uint16_t>(packed);
    if (shape.dtype == static_cast<int>(DType::kF16)) {  // others are their own upper part
      low_keys_ = arena.allocate<uint16_t>(packed);
      low_values_ = arena.allocate<uint16_t>(packed);
    }
    if (shape.dtype == static_cast<int>(DType::kI8)) {
      key_scales_ = arena.allocate<float>(shape.kv_heads * most_positions);
      value_scales_ = arena.allocate<float>(shape.kv_heads * most_positions);
    }
    scratch_floats_ = std::max(kTileScratchFloats, kTileQueries * dims_);
    scratch_ = arena.allocate<float>(scratch_floats_ * context.pool().threads());
  }

  int64_t tiles(const TokenSpan& tokens) const override {
    return (tokens.count * shape_.group + kTileQueries - 1) / kTileQueries;
  }

  void start(const TokenSpan& tokens, int64_t kv_head, int64_t tile) override {
    const TileQueries queries = rows(tokens, kv_head, tile);
    float* gathered = queries.acc;  // not needed yet, and large enough
    for (int64_t i = 0; i < queries.rows; ++i) {
      const float* q = args_.q.row_as<float>(query_row(tokens, kv_head, queries.first_row + i));
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        gathered[i * shape_.head_dim + d] = q[d] * (args_.scale * kLog2E);
      }
    }
    const int64_t packed = (kv_head * most_tiles_ + tile) * kTileQueries * dims_;
    if (!tiles_.pack_queries(gathered, queries.rows, shape_.head_dim, dims_, high_queries_ + packed,
                             low_queries_ + packed)) {
      gave_up_ = true;
    }
    std::fill_n(queries.max, kTileQueries, -std::numeric_limits<float>::infinity());
    std::fill_n(queries.sum, kTileQueries, 0.0f);
    std::fill_n(queries.acc, kTileQueries * dims_, 0.0f);
  }

  void pack(const PositionSpan& span, int64_t kv_head, int64_t offset) override {
    const KeySource& source = *span.source;
    const RingRows key_ring = ring_rows(source.keys, source.key_scales, kv_head);
    const RingRows value_ring = ring_rows(source.values, source.value_scales, kv_head);
    const int64_t end = std::min(span.count, offset + kKeyBlock);
    for (int64_t at = offset; at < end; at += kTileKeys) {
      const int64_t position = span.first + at;
      const int64_t count = std::min(kTileKeys, end - at);
      const int64_t first_key = kv_head * most_positions_ + at;
      const int64_t packed = first_key * dims_;
      const bool keys_finite = tiles_.pack_keys[shape_.dtype](
          key_ring, position, count, dims_, high_keys_ + packed, advanced(low_keys_, packed));
      const bool values_finite = tiles_.pack_values[shape_.dtype](
          value_ring, position, count, dims_, high_values_ + packed, advanced(low_values_, packed));
      if (!keys_finite || !values_finite) gave_up_ = true;
      if (key_scales_ == nullptr) continue;
      pack_scales(key_ring, position, count, key_scales_ + first_key);
      pack_scales(value_ring, position, count, value_scales_ + first_key);
    }
  }

  void attend(const TokenSpan& tokens, const PositionSpan& span, int64_t kv_head, int64_t tile,
              int thread) override {
    const int64_t first_key = kv_head * most_positions_;
    const int64_t packed = first_key * dims_;
    tiles_.attend(facing(*span.source, rows(tokens, kv_head, tile)),
                  {high_keys_ + packed, advanced(low_keys_, packed), high_values_ + packed,
                   advanced(low_values_, packed), advanced(key_scales_, first_key),
                   advanced(value_scales_, first_key), span.first, span.count},
                  scratch_ + scratch_floats_ * thread);
  }

  void finish(const TokenSpan& tokens, int64_t kv_head, int64_t tile, int thread) override {
    const TileQueries queries = rows(tokens, kv_head, tile);
    float* outputs = scratch_ + scratch_floats_ * thread;
    tiles_.finish(queries, outputs);
    for (int64_t i = 0; i < queries.rows; ++i) {
      std::copy_n(outputs + i * dims_, shape_.head_dim,
                  args_.o.row_as<float>(query_row(tokens, kv_head, queries.first_row + i)));
    }
  }

  // A product with a weight of zero would carry NaN and infinity to queries that do not see them.
  bool gave_up() const override { return gave_up_; }

 private:
  template <typename T>
  static T* advanced(T* p, int64_t by) {
    return p != nullptr ? p + by : nullptr;
  }
  // Those of a whole tile of keys; 1 where there is none.
  static void pack_scales(const RingRows& rows, int64_t position, int64_t count, float* out) {
    for (int64_t i = 0; i < kTileKeys; ++i) {
      out[i] = i < count ? rows.scales[(position + i) % rows.capacity] : 1.0f;
    }
  }
  // Row of q and o that holds a row of the queries of one key/value head.
  int64_t query_row(const TokenSpan& tokens, int64_t kv_head, int64_t row) const {
    const int64_t token = tokens.first + row / shape_.group;
    return (token * shape_.kv_heads + kv_head) * shape_.group + row % shape_.group;
  }
  TileQueries rows(const TokenSpan& tokens, int64_t kv_head, int64_t tile) const {
    const int64_t row = (kv_head * most_tiles_ + tile) * kTileQueries;
    const int64_t first = tile * kTileQueries;
    return {high_queries_ + row * dims_,
            low_queries_ + row * dims_,
            first,
            std::min(kTileQueries, tokens.count * shape_.group - first),
            shape_.group,
            tokens.first,
            0,  // known when facing a source
            dims_,
            max_ + row,
            sum_ + row,
            acc_ + row * dims_};
  }

  const SoftmaxAttentionArgs& args_;
  const AttentionShape& shape_;
  const SoftmaxAttentionTiles& tiles_;
  int64_t dims_;
  int64_t most_tiles_;
  int64_t most_positions_;
  uint16_t* high_queries_;
  uint16_t* low_queries_;
  float* max_;
  float* sum_;
  float* acc_;
  uint16_t* high_keys_;
  uint16_t* low_keys_ = nullptr;
  uint16_t* high_values_;
  uint16_t* low_values_ = nullptr;
  float* key_scales_ = nullptr;
  float* value_scales_ = nullptr;
  float* scratch_;
  int64_t scratch_floats_;
  std::atomic<bool> gave_up_ = false;
};

}  // namespace

std::unique_ptr<PrefillEngine> make_tile_engine(Context& context, const SoftmaxAttentionArgs& args,
                                                const AttentionShape& shape, int64_t most_tokens,
                                                int64_t most_positions) {
  return std::make_unique<TileEngine>(context, args, shape, most_tokens, most_positions);
}

}  // namespace spb::ops
