#include "ops/gated_linear_attention/gated_linear_attention_cpu.h"

#include <algorithm>

#include "core/isa.h"
#include "core/transfer.h"

namespace spb::ops {
namespace {

// Columns of the state that one thread takes at a time in the recurrent form: a [128, 32] tile
// stays in L1 from token to token. Narrower tiles where that leaves threads without work; columns
// do not depend on each other, so the results are the same.
constexpr int64_t kColumnTile = 32;
constexpr int64_t kNarrowTile = 16;

// Tokens that go through all tiles of a head before the next ones do: their queries stay in L2.
constexpr int64_t kTokenBlock = 32;

// Chunks whose starting states are held at once: bounds scratch memory for long inputs.
constexpr int64_t kSpanChunks = 16;

// With their outputs.
GatedTokens tokens_of(const GatedLinearAttentionArgs& args, int64_t kv_head, int64_t first,
                      int64_t count) {
  GatedTokens tokens = inputs_of(args, kv_head, first, count);
  tokens.o = args.o.row_as<float>((first * args.k.shape()[1] + kv_head) * tokens.group);
  return tokens;
}

float* state_of(const GatedLinearAttentionArgs& args, int64_t kv_head) {
  return args.state.row_as<float>(kv_head * args.k.shape()[2]);
}

}  // namespace

void gated_linear_attention_recurrent(Context& context, const GatedLinearAttentionArgs& args) {
  const int64_t tokens = args.q.shape()[0];
  const int64_t kv_heads = args.k.shape()[1];
  const int64_t value_dim = args.v.shape()[2];
  const int threads = context.pool().threads();
  const bool enough = kv_heads * (value_dim / kColumnTile) >= threads;
  const int64_t tile = enough ? kColumnTile : kNarrowTile;
  const int64_t tiles = (value_dim + tile - 1) / tile;
  const int64_t channels = padded_channels(args.k.shape()[2]);
  const RecurrentKernels& kernels = select_isa(
      isa_portable::kRecurrentKernels, isa_avx2::kRecurrentKernels, isa_avx512::kRecurrentKernels);
  const Arena::Scope scope(context.arena());
  float* decay = context.arena().allocate<float>(channels * threads);
  GatedLinearAttentionArgs split = args;
  if (args.q.data() == args.o.data()) {
    // Columns are done a few at a time, in tiles and within them, and all read whole queries.
    const TensorView copy = context.arena().tensor(args.q.shape());
    copy_tensor(context, args.q, copy);
    split.q = copy;
  }
  for (int64_t first = 0; first < tokens; first += kTokenBlock) {
    const int64_t count = std::min(kTokenBlock, tokens - first);
    const auto recur = [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t kv_head = i / tiles;
        const int64_t column = i % tiles * tile;
        kernels.recur(tokens_of(split, kv_head, first, count), column,
                      std::min(tile, value_dim - column), state_of(args, kv_head),
                      decay + channels * thread);
      }
    };
    context.pool().parallel_for(kv_heads * tiles, 1, recur);
  }
}

void gated_linear_attention_chunked(Context& context, const GatedLinearAttentionArgs& args) {
  const int64_t tokens = args.q.shape()[0];
  const int64_t kv_heads = args.k.shape()[1];
  const int64_t group = args.q.shape()[1] / kv_heads;
  const int64_t key_dim = args.k.shape()[2];
  const int64_t state_floats = key_dim * args.v.shape()[2];
  const int64_t all_chunks = (tokens + kChunk - 1) / kChunk;
  const int64_t channel_tiles = padded_channels(key_dim) / kChannelTile;
  const int64_t span = std::min(kSpanChunks, all_chunks);

  const ChunkedKernels& kernels = select_isa(
      isa_portable::kChunkedKernels, isa_avx2::kChunkedKernels, isa_avx512::kChunkedKernels);
  const Arena::Scope scope(context.arena());
  Arena& arena = context.arena();
  const int threads = context.pool().threads();
  float* before = arena.allocate<float>(span * kv_heads * state_floats);  // states, chunk by chunk
  float* keys = arena.allocate<float>(kChunk * kChannelTile * threads);
  const int64_t scratch_floats = chunk_scratch_floats(key_dim, group);
  float* scratch = arena.allocate<float>(scratch_floats * threads);

  for (int64_t first = 0; first < all_chunks; first += span) {
    const int64_t chunks = std::min(span, all_chunks - first);
    const auto chunk_tokens = [&](int64_t kv_head, int64_t chunk) {
      const int64_t token = (first + chunk) * kChunk;
      return tokens_of(args, kv_head, token, std::min(kChunk, tokens - token));
    };
    context.pool().parallel_dynamic(kv_heads * channel_tiles, [&](int64_t task, int thread) {
      const int64_t kv_head = task / channel_tiles;
      const int64_t channel = task % channel_tiles * kChannelTile;
      const int64_t begin = channel * args.v.shape()[2];
      const int64_t end = std::min(begin + kChannelTile * args.v.shape()[2], state_floats);
      float* state = state_of(args, kv_head);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        std::copy(state + begin, state + end,
                  before + (chunk * kv_heads + kv_head) * state_floats + begin);
        kernels.advance(chunk_tokens(kv_head, chunk), channel, state,
                        keys + kChunk * kChannelTile * thread);
      }
    });
    context.pool().parallel_dynamic(kv_heads * chunks, [&](int64_t task, int thread) {
      kernels.read_chunk(chunk_tokens(task % kv_heads, task / kv_heads),
                         before + task * state_floats, scratch + scratch_floats * thread);
    });
  }
}

}  // namespace spb::ops
