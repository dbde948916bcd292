#include <algorithm>

#include "core/isa.h"
#include "ops/softmax_attention/softmax_attention_prefill.h"

namespace spb::ops {
namespace {

// Tokens whose running softmax is held at once, and positions packed at once: they bound scratch
// memory whatever the lengths are.
constexpr int64_t kSpanTokens = 1024;
constexpr int64_t kSpanPositions = 1024;

// Runs the tokens of a span against all they see, span of positions by span of positions. False
// if the engine gave up; then nothing has been written to the outputs.
bool attend_span(Context& context, PrefillEngine& engine, const AttentionShape& shape,
                 const TokenSpan& tokens) {
  const int64_t tiles = engine.tiles(tokens);
  // Late tiles first: with causal attention they have most to do.
  const auto each_tile = [&](auto&& body) {
    context.pool().parallel_dynamic(shape.kv_heads * tiles, [&](int64_t task, int thread) {
      body(task % shape.kv_heads, tiles - 1 - task / shape.kv_heads, thread);
    });
  };
  each_tile([&](int64_t kv_head, int64_t tile, int) { engine.start(tokens, kv_head, tile); });
  const auto attend = [&](const PositionSpan& span) {
    const int64_t blocks = (span.count + kKeyBlock - 1) / kKeyBlock;
    context.pool().parallel_for(shape.kv_heads * blocks, 1, [&](int64_t begin, int64_t stop, int) {
      for (int64_t i = begin; i < stop; ++i) {
        engine.pack(span, i / blocks, i % blocks * kKeyBlock);
      }
    });
    if (engine.gave_up()) return false;
    each_tile([&](int64_t kv_head, int64_t tile, int thread) {
      engine.attend(tokens, span, kv_head, tile, thread);
    });
    return true;
  };
  for (const KeySource* source : {&shape.sinks, &shape.cache}) {
    const int64_t first_position = source->first_position + tokens.first;
    const int64_t end = std::min(source->end, first_position + tokens.count);
    for (int64_t position = source->first_visible(first_position); position < end;
         position += kSpanPositions) {
      if (!attend({source, position, std::min(kSpanPositions, end - position)})) return false;
    }
  }
  each_tile([&](int64_t kv_head, int64_t tile, int thread) {
    engine.finish(tokens, kv_head, tile, thread);
  });
  return true;
}

}  // namespace

void softmax_attention_prefill(Context& context, const SoftmaxAttentionArgs& args) {
  const AttentionShape shape(args);
  const int64_t most_tokens = std::min(shape.tokens, kSpanTokens);
  const bool tiles = isa() == Isa::kAmx && softmax_attention_tiles() != nullptr &&
                     shape.dtype != static_cast<int>(DType::kF32);
  for (int64_t first = 0; first < shape.tokens; first += kSpanTokens) {
    const TokenSpan tokens{first, std::min(kSpanTokens, shape.tokens - first)};
    bool done = false;
    if (tiles) {
      const Arena::Scope scope(context.arena());
      const auto engine = make_tile_engine(context, args, shape, most_tokens, kSpanPositions);
      done = attend_span(context, *engine, shape, tokens);
    }
    if (!done) {
      const Arena::Scope scope(context.arena());
      const auto engine = make_float_engine(context, args, shape, most_tokens, kSpanPositions);
      attend_span(context, *engine, shape, tokens);
    }
  }
}

}  // namespace spb::ops
