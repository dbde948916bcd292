#include "core/simd/product.h"
#include "core/simd/transpose.h"
#include "core/simd/vec.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::SPB_ISA {
namespace {

using ops::GatedTokens;
using ops::kChannelTile;
using ops::kChunk;
using ops::kEarlierKeys;
using ops::kSubChunk;

Vec load_up_to(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : load_partial(p, static_cast<int>(count));
}

// The log decay of `count` channels, floored; NaN stays NaN.
Vec load_gate(const float* g, int64_t count) {
  const Vec gate = load_up_to(g, count);
  const Vec floor = broadcast(ops::kMinLogDecay);
  return gate < floor ? floor : gate;
}

// ---------------------------------------------------------------------------------------------
// Recurrent form

// Registers of value columns handled together; each query head needs as many for its sums.
constexpr int kColumns = kLanes == 16 ? 2 : 1;
constexpr int kHeads = 8;  // query heads read in one pass over the state

// One token over kWide registers of columns. The first pass over the state decays and writes it;
// groups of more than kHeads heads read it again.
template <int kCount, int kWide, bool kUpdate, bool kPartial>
void step(const float* q, const float* k, const float* v, const float* decay, int64_t key_dim,
          int64_t row, float scale, int last, float* state, float* o) {
  const auto read = [last](const float* p) {
    if constexpr (kPartial) return load_partial(p, last);
    return load(p);
  };
  const auto write = [last](float* p, Vec x) {
    if constexpr (kPartial) return store_partial(p, x, last);
    store(p, x);
  };
  Vec value[kWide];
  if constexpr (kUpdate) {
    for (int n = 0; n < kWide; ++n) value[n] = read(v + n * kLanes);
  }
  Vec sums[kCount][kWide] = {};
  for (int64_t c = 0; c < key_dim; ++c) {
    Vec s[kWide];
    for (int n = 0; n < kWide; ++n) {
      s[n] = read(state + c * row + n * kLanes);
      if constexpr (kUpdate) {
        s[n] = fma(broadcast(k[c]), value[n], s[n] * broadcast(decay[c]));
        write(state + c * row + n * kLanes, s[n]);
      }
    }
    for (int h = 0; h < kCount; ++h) {
      const Vec query = broadcast(q[h * key_dim + c]);
      for (int n = 0; n < kWide; ++n) sums[h][n] = fma(query, s[n], sums[h][n]);
    }
  }
  for (int h = 0; h < kCount; ++h) {
    for (int n = 0; n < kWide; ++n) write(o + h * row + n * kLanes, sums[h][n] * broadcast(scale));
  }
}

using Step = void (*)(const float*, const float*, const float*, const float*, int64_t, int64_t,
                      float, int, float*, float*);

template <int kWide, bool kUpdate, bool kPartial>
constexpr Step kSteps[kHeads + 1] = {nullptr,
                                     step<1, kWide, kUpdate, kPartial>,
                                     step<2, kWide, kUpdate, kPartial>,
                                     step<3, kWide, kUpdate, kPartial>,
                                     step<4, kWide, kUpdate, kPartial>,
                                     step<5, kWide, kUpdate, kPartial>,
                                     step<6, kWide, kUpdate, kPartial>,
                                     step<7, kWide, kUpdate, kPartial>,
                                     step<8, kWide, kUpdate, kPartial>};

// One token over the columns from `column` on; returns how many were done.
int64_t step_columns(const GatedTokens& tokens, int64_t token, int64_t column, int64_t columns,
                     const float* decay, float* state) {
  const float* q = tokens.q + token * tokens.q_stride;
  const float* k = tokens.k + token * tokens.k_stride;
  const float* v = tokens.v + token * tokens.v_stride + column;
  float* o = tokens.o + token * tokens.o_stride + column;
  const bool wide = columns >= kColumns * kLanes;
  const int last = static_cast<int>(columns < kLanes ? columns : kLanes);
  for (int64_t h = 0; h < tokens.group; h += kHeads) {
    const int64_t heads = tokens.group - h < kHeads ? tokens.group - h : kHeads;
    const Step update = wide ? kSteps<kColumns, true, false>[heads] : kSteps<1, true, true>[heads];
    const Step again = wide ? kSteps<kColumns, false, false>[heads] : kSteps<1, false, true>[heads];
    (h == 0 ? update : again)(q + h * tokens.key_dim, k, v, decay, tokens.key_dim, tokens.value_dim,
                              tokens.scale, last, state + column, o + h * tokens.value_dim);
  }
  return wide ? kColumns * kLanes : last;
}

void recur(const GatedTokens& tokens, int64_t first_column, int64_t columns, float* state,
           float* decay) {
  for (int64_t t = 0; t < tokens.tokens; ++t) {
    for (int64_t c = 0; c < tokens.key_dim; c += kLanes) {
      const float* g = tokens.g + t * tokens.k_stride + c;
      store(decay + c, exp(load_gate(g, tokens.key_dim - c)));
    }
    for (int64_t done = 0; done < columns;) {
      done += step_columns(tokens, t, first_column + done, columns - done, decay, state);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Chunked form. Every exponent is a sum of gates over consecutive tokens, added up directly: a
// difference of cumulative gates would lose the small ones behind a large one.

void advance(const GatedTokens& tokens, int64_t channel, float* state, float* keys) {
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
    Vec anchor_sum = {};
    for (int64_t t = 0; t < tokens.tokens; ++t) {
      const int64_t left = tokens.key_dim - c;
      const Vec gate = left > 0 ? load_gate(tokens.g + t * tokens.k_stride + c, left) : Vec{};
      chunk_sum = chunk_sum + gate;
      anchor_sum = t % kSubChunk == 0 ? Vec{} : anchor_sum + gate;
      const int64_t at = t * scratch.channels + c;
      store(scratch.from_chunk + at, exp(chunk_sum));
      store(scratch.from_anchor + at, exp(anchor_sum));
      store(scratch.of_token + at, exp(gate));
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

// weights[j] = scale * <query, near[j]> for j < count.
void weigh_near(const GatedTokens& tokens, const float* query, const ChunkScratch& scratch,
                int64_t count, float* weights) {
  constexpr int kTogether = 4;
  for (int64_t first = 0; first < count; first += kLanes) {
    Vec sums[kLanes] = {};
    for (int64_t j = 0; j < kLanes && first + j < count; j += kTogether) {
      Vec partial[kTogether] = {};
      for (int64_t c = 0; c < tokens.key_dim; c += kLanes) {
        const Vec q = load_up_to(query + c, tokens.key_dim - c);
        for (int i = 0; i < kTogether; ++i) {
          const Vec key = load(scratch.near + (first + j + i) * scratch.channels + c);
          partial[i] = fma(q, key, partial[i]);
        }
      }
      for (int i = 0; i < kTogether; ++i) sums[j + i] = partial[i];
    }
    const Vec dots = reduce_add_each(sums) * broadcast(tokens.scale);
    const int64_t left = count - first;
    store_partial(weights + first, dots, static_cast<int>(left < kLanes ? left : kLanes));
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
    for (int64_t h = 0; h < tokens.group; ++h) {
      weigh_near(tokens, tokens.q + token * tokens.q_stride + h * tokens.key_dim, scratch, i + 1,
                 scratch.weights + (token * tokens.group + h) * kChunk + first);
    }
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

// ---------------------------------------------------------------------------------------------
// Inputs

template <typename Function>
void map(float* x, int64_t count, Function function) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, function(load(x + i)));
  if (i == count) return;
  const int rest = static_cast<int>(count - i);
  store_partial(x + i, function(load_partial(x + i, rest)), rest);
}

void rectify(float* x, int64_t count) {
  map(x, count, [](Vec v) { return v < Vec{} ? Vec{} : v; });
}

// log(1 + u) for u in [0, 1], as 2 atanh(u / (2 + u)): the series converges fast, and small u keep
// their relative precision.
Vec log1p(Vec u) {
  const Vec s = u / (u + 2.0f);
  const Vec square = s * s;
  constexpr float kTerms[] = {2.0f / 13, 2.0f / 11, 2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f};
  Vec p = broadcast(2.0f / 15);
  for (const float term : kTerms) p = fma(p, square, broadcast(term));
  return p * s;
}

void log_gate(float* z, int64_t count, float factor) {
  map(z, count, [factor](Vec v) {
    const Vec negative = v > Vec{} ? Vec{} : v;
    const Vec magnitude = v < Vec{} ? -v : v;
    return (negative - log1p(exp(-magnitude))) * factor;
  });
}

}  // namespace

extern const ops::GatedLinearAttentionKernels kGatedLinearAttentionKernels;
const ops::GatedLinearAttentionKernels kGatedLinearAttentionKernels = {
    recur, advance, read_chunk, rectify, log_gate,
};

}  // namespace spb::SPB_ISA
