// Products of core counts with cells of core codes (layout in spike_cells.h).
#include "spike/spike_matmul/spike_cells.h"
#include "spike/spike_matmul/spike_rescale.h"

namespace spb::spike::SPB_ISA {
namespace {

// Tokens that share one pass over the weights; limited by the number of registers.
constexpr int kMaxTokens = kLanes == 16 ? 8 : 4;

// How far ahead of the arithmetic the weights are asked for: a few hundred cycles of work.
constexpr int64_t kPrefetchBytes = 4096;

// Exact sums of kLanes rows of one cell for kTokens tokens. A sum is split into chains that do not
// wait for each other.
template <int kTokens>
void sum_cell(const SpikeCellArgs& a, const std::byte* cell, int64_t token, int64_t group,
              VecI* sums) {
  constexpr int kChains = kTokens < 4 ? 4 / kTokens : 1;
  const int8_t* counts = a.core + token * a.core_stride + group * kCellColumns;
  VecI chains[kTokens][kChains] = {};
  for (int64_t j = 0; j < kCellColumns / 4; j += kChains) {
    for (int c = 0; c < kChains; ++c) {
      __builtin_prefetch(cell + kPrefetchBytes + 64 * (j + c));
      const VecI codes = load_int(cell + 64 * (j + c)) ^ static_cast<int32_t>(0x80808080u);
      for (int t = 0; t < kTokens; ++t) {
        chains[t][c] = dot_bytes<8>(chains[t][c], codes,
                                    broadcast_quad(counts + t * a.core_stride + 4 * (j + c)));
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    sums[t] = broadcast_int(a.offsets[(token + t) * a.groups + group]);
    for (int c = 0; c < kChains; ++c) sums[t] += chains[t][c];
  }
}

template <int kTokens, bool kCorrected>
void multiply_tokens(const SpikeCellArgs& a, int64_t block, int64_t token, int first_row) {
  const std::byte* cell = a.blocks + block * a.groups * kCellBytes + 4 * first_row;
  Vec results[kTokens] = {};
  for (int64_t g = 0; g < a.groups; ++g, cell += kCellBytes) {
    VecI sums[kTokens];
    sum_cell<kTokens>(a, cell, token, g, sums);
    const Vec scales = (Vec)load_int(cell + kCellCodeBytes);
    for (int t = 0; t < kTokens; ++t) {
      Vec exact;
      if constexpr (kCorrected) {
        exact = exact_sum_to_floats(sums[t], a.corrections + g * kBlockRows + first_row);
      } else {
        exact = to_floats(sums[t]);
      }
      results[t] = fused(exact, scales, results[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    put_results(a.out, token + t, block * kBlockRows + first_row, a.rows, results[t],
                broadcast_float(a.thresholds + token + t));
  }
}

void multiply_rows(const SpikeCellArgs& a, int64_t block, int first_row) {
  if (a.corrections != nullptr) {
    multiply_tokens<1, true>(a, block, 0, first_row);
    return;
  }
  int64_t token = 0;
  for (; token + kMaxTokens <= a.tokens; token += kMaxTokens) {
    multiply_tokens<kMaxTokens, false>(a, block, token, first_row);
  }
  for (; token + 2 <= a.tokens; token += 2) multiply_tokens<2, false>(a, block, token, first_row);
  if (token < a.tokens) multiply_tokens<1, false>(a, block, token, first_row);
}

}  // namespace

void multiply_spike_cells(const SpikeCellArgs& a) {
  for (int64_t block = 0; block * kBlockRows < a.rows; ++block) {
    for (int first_row = 0; first_row < kBlockRows; first_row += kLanes) {
      multiply_rows(a, block, first_row);
    }
  }
}

}  // namespace spb::spike::SPB_ISA
