// The two ways of working off many queries: f32 registers, or bf16 tiles where the processor has
// them. Both cut the queries of a key/value head into tiles that threads take independently.
#pragma once

#include <memory>

#include "ops/softmax_attention/softmax_attention_cpu.h"
#include "ops/softmax_attention/softmax_attention_tiles.h"

namespace spb::ops {

struct TokenSpan {
  int64_t first;  // of the call
  int64_t count;
};

struct PositionSpan {
  const KeySource* source;
  int64_t first;
  int64_t count;
};

class PrefillEngine {
 public:
  virtual ~PrefillEngine() = default;
  virtual int64_t tiles(const TokenSpan& tokens) const = 0;  // per key/value head
  // Reads the queries of a tile; nothing seen yet.
  virtual void start(const TokenSpan& tokens, int64_t kv_head, int64_t tile) = 0;
  // Packs up to kKeyBlock positions of a span, from span.first + offset.
  virtual void pack(const PositionSpan& span, int64_t kv_head, int64_t offset) = 0;
  virtual void attend(const TokenSpan& tokens, const PositionSpan& span, int64_t kv_head,
                      int64_t tile, int thread) = 0;
  virtual void finish(const TokenSpan& tokens, int64_t kv_head, int64_t tile, int thread) = 0;
  // True once a number turned up that the engine cannot confine to the queries that see it.
  virtual bool gave_up() const { return false; }
};

// Scratch memory comes from the context's arena; the caller holds a scope around the engine.
std::unique_ptr<PrefillEngine> make_float_engine(Context& context, const SoftmaxAttentionArgs& args,
                                                 const AttentionShape& shape, int64_t most_tokens,
                                                 int64_t most_positions);
std::unique_ptr<PrefillEngine> make_tile_engine(Context& context, const SoftmaxAttentionArgs& args,
                                                const AttentionShape& shape, int64_t most_tokens,
                                                int64_t most_positions);

}  // namespace spb::ops
