#include "core/simd/product.h"
#include "core/simd/subnormals.h"
#include "core/simd/transpose.h"
#include "ops/gated_linear_attention/gated_linear_attention_gate.h"
#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::SPB_ISA {
namespace {

using ops::GatedTokens;
using ops::kChannelTile;
using ops::kChunk;
using ops::kEarlierKeys;
using ops::kSubChunk;

// Chunked form. Every exponent is a sum of gates over consecutive tokens, added up directly: a
// difference of cumulative gates would lose the small ones behind a large one.

void advance(const GatedTokens& tokens, int64_t channel, float* state, float* keys) {
  const FlushSubnormals flush;
  const int64_t left = tokens.key_dim - channel;
  const int64_t channels = left < kChannelTile ? left : kChannelTile;
  float decay[kChannelTile];
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec after = {};  // gates of the tokens behind
    for (int64_t t = tokens.tokens - 1; t >= 0; --t) {
      const int64_t at = t * tokens.k_stride + channel + c;
      store(keys + t * kChannelTile + c, load_up_to(tokens.k + at, channels - c) * exp(after));
      after = after + load_gate(tokens.g + at, channels - c);
    }
    store(decay + c, exp(after));
  }
  float* rows = state + channel * tokens.value_dim;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t n = 0; n < tokens.value_dim; ++n) rows[c * tokens.value_dim + n] *= decay[c];
  }
  product<Into::kAdd>({keys, 1, kChannelTile}, tokens.v, tokens.v_stride, tokens.tokens, rows,
                      tokens.value_dim, channels, tokens.value_dim);
}

struct ChunkScratch {
  int64_t channels;    // row length, padded with zeros
  float* from_chunk;   // [kChunk, channels]: decay from before the chunk to the token
  float* from_anchor;  // [kChunk, channels]: decay from the first token of the sub-chunk
  float* of_token;     // [kChunk, channels]: decay of the token
  float* queries;      // [group * kSubChunk or kChunk, channels]
  float* earlier;      // [channels, kEarlierKeys]: keys decayed up to the anchor
  float* near;         // [kSubChunk, channels]: keys decayed up to the current token
  float* weights;      // [kChunk, group, kChunk]

  ChunkScratch(const GatedTokens& tokens, float* scratch)
      : channels(ops::padded_channels(tokens.key_dim)),
        from_chunk(scratch),
        from_anchor(from_chunk + kChunk * channels),
        of_token(from_anchor + kChunk * channels),
        earlier(of_token + kChunk * channels),
        near(earlier + kEarlierKeys * channels),
        weights(near + kSubChunk * channels) {
    queries = weights + tokens.group * kChunk * kChunk;
  }
};

void accumulate_gates(const GatedTokens& tokens, const ChunkScratch& scratch) {
  for (int64_t c = 0; c < scratch.channels; c += kLanes) {
    Vec chunk_sum = {};
    Vec anchor_decay = {};
    for (int64_t t = 0; t < tokens.tokens; ++t) {
      const int64_t left = tokens.key_dim - c;
      const Vec gate = left > 0 ? load_gate(tokens.g + t * tokens.k_stride + c, left) : Vec{};
      chunk_sum = chunk_sum + gate;
      const Vec decay = exp(gate);
      // A product of at most 15 decays keeps its precision and saves an exponential.
      anchor_decay = t % kSubChunk == 0 ? broadcast(1.0f) : anchor_decay * decay;
      const int64_t at = t * scratch.channels + c;
      store(scratch.from_chunk + at, exp(chunk_sum));
      store(scratch.from_anchor + at, anchor_decay);
      store(scratch.of_token + at, decay);
    }
  }
}

// Queries of `count` tokens and one or all heads, scaled and decayed:
// out[t, h] = scale * q[t, h] * decay[t].
void scale_queries(const GatedTokens& tokens, int64_t first, int64_t count, int64_t first_head,
                   int64_t heads, const float* decay, int64_t channels, float* out) {
  for (int64_t t = first; t < first + count; ++t) {
    for (int64_t h = first_head; h < first_head + heads; ++h) {
      const float* q = tokens.q + t * tokens.q_stride + h * tokens.key_dim;
      for (int64_t c = 0; c < tokens.key_dim; c += kLanes) {
        const Vec query = load_up_to(q + c, tokens.key_dim - c) * broadcast(tokens.scale);
        store(out + c, query * load(decay + t * channels + c));
      }
      out += channels;
    }
  }
}

// Keys of the tokens before `anchor`, decayed up to and including it, by channel.
void fold_earlier_keys(const GatedTokens& tokens, int64_t anchor, const ChunkScratch& scratch) {
  for (int64_t c = 0; c < tokens.key_dim; c += kLanes) {
    const int64_t left = tokens.key_dim - c;
    const int64_t rows = left < kLanes ? left : kLanes;
    Vec after = {};
    for (int64_t first = anchor - kLanes; first >= 0; first -= kLanes) {
      Vec square[kLanes];
      for (int i = kLanes - 1; i >= 0; --i) {
        const int64_t at = (first + i) * tokens.k_stride + c;
        after = after + load_gate(tokens.g + at + tokens.k_stride, left);
        square[i] = load_up_to(tokens.k + at, left) * exp(after);
      }
      transpose(square);
      for (int64_t i = 0; i < rows; ++i) {
        store(scratch.earlier + (c + i) * kEarlierKeys + first, square[i]);
      }
    }
  }
}

// weights[h, j] = scale * <query[h], near[j]> for kHeads query heads and four keys.
template <int kHeads>
void weigh_four(const GatedTokens& tokens, const float* query, const float* near, int64_t channels,
                float* weights) {
  Vec sums[kHeads][4];
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < 4; ++i) sums[h][i] = Vec{};
  }
  for (int64_t c = 0; c < tokens.key_dim; c += kLanes) {
    Vec key[4];
    for (int i = 0; i < 4; ++i) key[i] = load(near + i * channels + c);
    for (int h = 0; h < kHeads; ++h) {
      const Vec q = load_up_to(query + h * tokens.key_dim + c, tokens.key_dim - c);
      for (int i = 0; i < 4; ++i) sums[h][i] = fma(q, key[i], sums[h][i]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < 4; ++i) weights[h * kChunk + i] = reduce_add(sums[h][i]) * tokens.scale;
  }
}

// Weights of the first `count` keys of the sub-chunk, four by four: what lies beyond is written,
// too, and overwritten or never read.
void weigh_near(const GatedTokens& tokens, const float* query, const ChunkScratch& scratch,
                int64_t count, float* weights) {
  for (int64_t j = 0; j < count; j += 4) {
    const float* near = scratch.near + j * scratch.channels;
    int64_t h = 0;
    for (; h + 2 <= tokens.group; h += 2) {
      weigh_four<2>(tokens, query + h * tokens.key_dim, near, scratch.channels,
                    weights + h * kChunk + j);
    }
    if (h < tokens.group) {
      weigh_four<1>(tokens, query + h * tokens.key_dim, near, scratch.channels,
                    weights + h * kChunk + j);
    }
  }
}

// Weights of the pairs inside the sub-chunk [first, first + count).
void weigh_sub_chunk(const GatedTokens& tokens, int64_t first, int64_t count,
                     const ChunkScratch& scratch) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = first + i;
    const float* decay = scratch.of_token + token * scratch.channels;
    for (int64_t c = 0; c < scratch.channels; c += kLanes) {
      const Vec factor = load(decay + c);
      for (int64_t j = 0; j < i; ++j) {
        float* key = scratch.near + j * scratch.channels + c;
        store(key, load(key) * factor);
      }
      const int64_t left = tokens.key_dim - c;
      const Vec key = left > 0 ? load_up_to(tokens.k + token * tokens.k_stride + c, left) : Vec{};
      store(scratch.near + i * scratch.channels + c, key);
    }
    weigh_near(tokens, tokens.q + token * tokens.q_stride, scratch, i + 1,
               scratch.weights + token * tokens.group * kChunk + first);
  }
}

// o += A v for one head, where row i of A has i + 1 entries: what lies beyond is not touched.
void add_weighted_values(const GatedTokens& tokens, const float* weights, int64_t weight_row,
                         float* o) {
  const float* v = tokens.v;
  for (int64_t first = 0; first < tokens.tokens; first += kProductRows) {
    const int64_t left = tokens.tokens - first;
    const int64_t rows = left < kProductRows ? left : kProductRows;
    const float* row_weights = weights + first * weight_row;
    float* out = o + first * tokens.o_stride;
    product<Into::kAdd>({row_weights, weight_row, 1}, v, tokens.v_stride, first, out,
                        tokens.o_stride, rows, tokens.value_dim);
    for (int64_t i = 0; i < rows; ++i) {
      product<Into::kAdd>({row_weights + i * weight_row + first, weight_row, 1},
                          v + first * tokens.v_stride, tokens.v_stride, i + 1,
                          out + i * tokens.o_stride, tokens.o_stride, 1, tokens.value_dim);
    }
  }
}

void read_chunk(const GatedTokens& tokens, const float* state, float* memory) {
  const FlushSubnormals flush;
  const ChunkScratch scratch(tokens, memory);
  const int64_t group = tokens.group;
  accumulate_gates(tokens, scratch);
  for (int64_t first = 0; first < tokens.tokens; first += kSubChunk) {
    const int64_t left = tokens.tokens - first;
    const int64_t count = left < kSubChunk ? left : kSubChunk;
    if (first > 0) {
      fold_earlier_keys(tokens, first, scratch);
      scale_queries(tokens, first, count, 0, group, scratch.from_anchor, scratch.channels,
                    scratch.queries);
      product<Into::kOverwrite>(
          {scratch.queries, scratch.channels, 1}, scratch.earlier, kEarlierKeys, tokens.key_dim,
          scratch.weights + first * group * kChunk, kChunk, count * group, first);
    }
    weigh_sub_chunk(tokens, first, count, scratch);
  }
  // From here on the queries of a head are read before its outputs, which may be the same memory.
  for (int64_t h = 0; h < group; ++h) {
    float* o = tokens.o + h * tokens.value_dim;
    scale_queries(tokens, 0, tokens.tokens, h, 1, scratch.from_chunk, scratch.channels,
                  scratch.queries);
    product<Into::kOverwrite>({scratch.queries, scratch.channels, 1}, state, tokens.value_dim,
                              tokens.key_dim, o, tokens.o_stride, tokens.tokens, tokens.value_dim);
    add_weighted_values(tokens, scratch.weights + h * kChunk, group * kChunk, o);
  }
}

}  // namespace

extern const ops::ChunkedKernels kChunkedKernels;
const ops::ChunkedKernels kChunkedKernels = {advance, read_chunk};

}  // namespace spb::SPB_ISA
