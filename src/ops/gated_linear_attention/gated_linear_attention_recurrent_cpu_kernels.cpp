#include "core/simd/product.h"
#include "core/simd/subnormals.h"
#include "ops/gated_linear_attention/gated_linear_attention_gate.h"
#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::SPB_ISA {
namespace {

using ops::GatedTokens;

// Registers of value columns handled together; each query head needs as many for its sums.
constexpr int kColumns = kLanes == 16 ? 2 : 1;
constexpr int kHeads = 8;  // query heads read in one pass over the state

// One token over kWide registers of columns. The first pass over the state decays and writes it;
// groups of more than kHeads heads read it again.
template <int kCount, int kWide, bool kUpdate, bool kPartial>
void step(const float* q, const float* k, const float* v, const float* decay, int64_t key_dim,
          int64_t row, float scale, int last, float* state, float* o) {
  Vec value[kWide];
  if constexpr (kUpdate) {
    for (int n = 0; n < kWide; ++n) value[n] = load_columns<kPartial>(v + n * kLanes, last);
  }
  // Set element by element: an initializer of the whole array would keep it in memory.
  Vec sums[kCount][kWide];
  for (int h = 0; h < kCount; ++h) {
    for (int n = 0; n < kWide; ++n) sums[h][n] = Vec{};
  }
  for (int64_t c = 0; c < key_dim; ++c) {
    Vec s[kWide];
    for (int n = 0; n < kWide; ++n) {
      s[n] = load_columns<kPartial>(state + c * row + n * kLanes, last);
      if constexpr (kUpdate) {
        s[n] = fma(broadcast(k[c]), value[n], s[n] * broadcast(decay[c]));
        store_columns<kPartial>(state + c * row + n * kLanes, s[n], last);
      }
    }
    for (int h = 0; h < kCount; ++h) {
      const Vec query = broadcast(q[h * key_dim + c]);
      for (int n = 0; n < kWide; ++n) sums[h][n] = fma(query, s[n], sums[h][n]);
    }
  }
  for (int h = 0; h < kCount; ++h) {
    for (int n = 0; n < kWide; ++n) {
      store_columns<kPartial>(o + h * row + n * kLanes, sums[h][n] * broadcast(scale), last);
    }
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
  const FlushSubnormals flush;
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

}  // namespace

extern const ops::RecurrentKernels kRecurrentKernels;
const ops::RecurrentKernels kRecurrentKernels = {recur};

}  // namespace spb::SPB_ISA
