#include "core/simd/transpose.h"
#include "core/simd/vec.h"
#include "ops/softmax_attention/softmax_attention_kernels.h"

namespace spb::SPB_ISA {
namespace {

using ops::kKeyBlock;
using ops::kScoreRows;
using ops::PackedBlock;
using ops::QueryRows;
using ops::RingRows;

// Registers across: with kScoreRows rows the accumulators fill most of the register file.
constexpr int kWide = kLanes == 16 ? 4 : 2;
constexpr float kInfinity = __builtin_inff();

// Walks the rows of consecutive positions through the ring.
template <typename T>
struct RingCursor {
  const T* first;
  const T* end;
  const T* row;
  int64_t stride;

  RingCursor(const RingRows& rows, int64_t position)
      : first(static_cast<const T*>(rows.data)),
        end(first + rows.capacity * rows.head_dim),
        row(first + position % rows.capacity * rows.head_dim),
        stride(rows.head_dim) {}
  const T* next() {
    const T* current = row;
    row += stride;
    if (row == end) row = first;
    return current;
  }
};

template <typename T>
Vec load_up_to(const T* p, int64_t count) {
  return count >= kLanes ? load(p) : load_partial(p, static_cast<int>(count));
}

template <typename T>
void pack_keys(const RingRows& rows, int64_t position, int64_t count, int64_t, float* out) {
  RingCursor<T> cursor(rows, position);
  for (int64_t key = 0; key < kKeyBlock; key += kLanes) {
    const T* key_rows[kLanes];
    for (int i = 0; i < kLanes; ++i) key_rows[i] = key + i < count ? cursor.next() : nullptr;
    for (int64_t d = 0; d < rows.head_dim; d += kLanes) {
      const int64_t dims = rows.head_dim - d < kLanes ? rows.head_dim - d : kLanes;
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        square[i] = key_rows[i] != nullptr ? load_up_to(key_rows[i] + d, dims) : Vec{};
      }
      transpose(square);
      for (int i = 0; i < dims; ++i) store(out + (d + i) * kKeyBlock + key, square[i]);
    }
  }
}

template <typename T>
void pack_values(const RingRows& rows, int64_t position, int64_t count, int64_t padded_dim,
                 float* out) {
  RingCursor<T> cursor(rows, position);
  for (int64_t key = 0; key < count; ++key) {
    const T* row = cursor.next();
    for (int64_t d = 0; d < padded_dim; d += kLanes) {
      const int64_t dims = rows.head_dim - d;
      store(out + key * padded_dim + d, dims > 0 ? load_up_to(row + d, dims) : Vec{});
    }
  }
}

template <typename T>
void round_row(const float* in, void* out, int64_t count) {
  T* row = static_cast<T*>(out);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(row + i, load(in + i));
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    store_partial(row + i, load_partial(in + i, rest), rest);
  }
}

// scores[r, key] = <q[r], key>
template <int kRows>
void score(const float* q, int64_t head_dim, const float* keys, float* scores) {
  for (int column = 0; column < kKeyBlock; column += kWide * kLanes) {
    Vec acc[kRows][kWide] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      Vec key[kWide];
      for (int c = 0; c < kWide; ++c) key[c] = load(keys + d * kKeyBlock + column + c * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const Vec x = broadcast(q[r * head_dim + d]);
        for (int c = 0; c < kWide; ++c) acc[r][c] = fma(x, key[c], acc[r][c]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kWide; ++c) {
        store(scores + r * kKeyBlock + column + c * kLanes, acc[r][c]);
      }
    }
  }
}

// acc[r] += sum over keys [begin, end) of weights[r, key] * values[key], kColumns registers wide.
template <int kRows, int kColumns>
void weigh_columns(const float* weights, const float* values, int64_t padded_dim, int64_t begin,
                   int64_t end, float* acc) {
  Vec sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) sums[r][c] = load(acc + r * padded_dim + c * kLanes);
  }
  for (int64_t key = begin; key < end; ++key) {
    Vec value[kColumns];
    for (int c = 0; c < kColumns; ++c) value[c] = load(values + key * padded_dim + c * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec weight = broadcast(weights[r * kKeyBlock + key]);
      for (int c = 0; c < kColumns; ++c) sums[r][c] = fma(weight, value[c], sums[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) store(acc + r * padded_dim + c * kLanes, sums[r][c]);
  }
}

template <int kRows>
void weigh(const float* weights, const float* values, int64_t padded_dim, int64_t begin,
           int64_t end, float* acc) {
  int64_t d = 0;
  for (; d + kWide * kLanes <= padded_dim; d += kWide * kLanes) {
    weigh_columns<kRows, kWide>(weights, values + d, padded_dim, begin, end, acc + d);
  }
  for (; d < padded_dim; d += kLanes) {
    weigh_columns<kRows, 1>(weights, values + d, padded_dim, begin, end, acc + d);
  }
}

using Score = void (*)(const float*, int64_t, const float*, float*);
using Weigh = void (*)(const float*, const float*, int64_t, int64_t, int64_t, float*);
constexpr Score kScore[] = {nullptr, score<1>, score<2>, score<3>, score<4>, score<5>, score<6>};
constexpr Weigh kWeigh[] = {nullptr, weigh<1>, weigh<2>, weigh<3>, weigh<4>, weigh<5>, weigh<6>};

// Turns scores into exp(score - max), in place, and rescales what was summed under the old maximum.
void exponentiate(float* scores, float& max, float& sum, float* acc, int64_t padded_dim) {
  Vec largest = load(scores);
  for (int i = kLanes; i < kKeyBlock; i += kLanes) {
    largest = spb::SPB_ISA::max(largest, load(scores + i));
  }
  const float block_max = reduce_max(largest);
  const float new_max = block_max > max ? block_max : max;
  // No key seen yet: any finite base keeps exp(-inf - base) = 0.
  const Vec base = broadcast(new_max == -kInfinity ? 0.0f : new_max);
  Vec total = {};
  for (int i = 0; i < kKeyBlock; i += kLanes) {
    const Vec weight = exp(load(scores + i) - base);
    store(scores + i, weight);
    total = total + weight;
  }
  if (new_max != max) {
    const Vec factor = exp(broadcast(max) - base);
    for (int64_t d = 0; d < padded_dim; d += kLanes) store(acc + d, load(acc + d) * factor);
    sum *= factor[0];
    max = new_max;
  }
  sum += reduce_add(total);
}

// The keys of a block that a token sees: [begin, end), relative to the block.
struct KeyRange {
  int64_t begin;
  int64_t end;
};

KeyRange visible(const QueryRows& rows, const PackedBlock& block, int64_t row) {
  const int64_t last = rows.first_position + row / rows.group - block.position;
  const int64_t begin = last - rows.window_size + 1;
  const int64_t end = last + 1;
  return {begin > 0 ? begin : 0, end < block.count ? end : block.count};
}

void mask(float* scores, KeyRange range) {
  for (int i = 0; i < kKeyBlock; i += kLanes) {
    const VecI key = lane_index() + i;
    const VecI seen = (key >= static_cast<int32_t>(range.begin)) &
                      (key < static_cast<int32_t>(range.end < 0 ? 0 : range.end));
    store(scores + i, seen ? load(scores + i) : broadcast(-kInfinity));
  }
}

// Rows [row, row + count) against a block that some of them see in part. Weights of keys out of
// sight are never multiplied by values, which may be anything there.
void attend_edge(const QueryRows& rows, const PackedBlock& block, int64_t row, int64_t count,
                 float* scores) {
  for (int64_t r = 0; r < count; ++r) {
    float* row_scores = scores + r * kKeyBlock;
    mask(row_scores, visible(rows, block, row + r));
    exponentiate(row_scores, rows.max[row + r], rows.sum[row + r],
                 rows.acc + (row + r) * rows.padded_dim, rows.padded_dim);
  }
  for (int64_t r = 0; r < count;) {
    const KeyRange range = visible(rows, block, row + r);
    const int64_t token_end = ((row + r) / rows.group + 1) * rows.group - row;
    const int64_t next = token_end < count ? token_end : count;
    kWeigh[next - r](scores + r * kKeyBlock, block.values, rows.padded_dim, range.begin, range.end,
                     rows.acc + (row + r) * rows.padded_dim);
    r = next;
  }
}

void attend(const QueryRows& rows, const PackedBlock& block, float* scores) {
  for (int64_t row = 0; row < rows.rows; row += kScoreRows) {
    const int64_t count = rows.rows - row < kScoreRows ? rows.rows - row : kScoreRows;
    const KeyRange first = visible(rows, block, row);
    const KeyRange last = visible(rows, block, row + count - 1);
    if (last.end <= 0 || first.begin >= block.count) continue;
    kScore[count](rows.q + row * rows.head_dim, rows.head_dim, block.keys, scores);
    if (first.end < kKeyBlock || last.begin > 0) {
      attend_edge(rows, block, row, count, scores);
      continue;
    }
    float* acc = rows.acc + row * rows.padded_dim;
    for (int64_t r = 0; r < count; ++r) {
      exponentiate(scores + r * kKeyBlock, rows.max[row + r], rows.sum[row + r],
                   acc + r * rows.padded_dim, rows.padded_dim);
    }
    kWeigh[count](scores, block.values, rows.padded_dim, 0, kKeyBlock, acc);
  }
}

}  // namespace

extern const ops::SoftmaxAttentionKernels kSoftmaxAttentionKernels;
const ops::SoftmaxAttentionKernels kSoftmaxAttentionKernels = {
    {pack_keys<float>, pack_keys<f16>, pack_keys<bf16>},
    {pack_values<float>, pack_values<f16>, pack_values<bf16>},
    {round_row<float>, round_row<f16>, round_row<bf16>},
    attend,
};

}  // namespace spb::SPB_ISA
