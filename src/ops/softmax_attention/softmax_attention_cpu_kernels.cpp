#include "core/simd/codes.h"
#include "core/simd/product.h"
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
using ops::UnpackedKeys;

constexpr float kInfinity = __builtin_inff();

template <typename T>
constexpr bool kIsCode = false;
template <>
constexpr bool kIsCode<Code> = true;

// A row of the cache and what one step of it is worth.
template <typename T>
struct ScaledRow {
  const T* data;  // null: a row of zeros
  float scale;
};

// Walks the rows of consecutive positions through the ring.
template <typename T>
struct RingCursor {
  const RingRows& rows;
  int64_t slot;

  RingCursor(const RingRows& ring, int64_t position) : rows(ring), slot(position % ring.capacity) {}
  ScaledRow<T> next() {
    const T* data = static_cast<const T*>(rows.data) + slot * rows.head_dim;
    const float scale = kIsCode<T> ? rows.scales[slot] : 1.0f;
    ++slot;
    if (slot == rows.capacity) slot = 0;
    return {data, scale};
  }
};

template <typename T>
Vec load_up_to(const T* p, int64_t count) {
  return count >= kLanes ? load(p) : load_partial(p, static_cast<int>(count));
}

// Up to `count` elements of a row from `first` on.
template <typename T>
Vec load_scaled(const ScaledRow<T>& row, int64_t first, int64_t count) {
  if (row.data == nullptr || count <= 0) return Vec{};
  const Vec v = load_up_to(row.data + first, count);
  return kIsCode<T> ? v * broadcast(row.scale) : v;
}

template <typename T>
void pack_keys(const RingRows& rows, int64_t position, int64_t count, int64_t, float* out) {
  RingCursor<T> cursor(rows, position);
  for (int64_t key = 0; key < kKeyBlock; key += kLanes) {
    ScaledRow<T> key_rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      key_rows[i] = key + i < count ? cursor.next() : ScaledRow<T>{nullptr, 0};
    }
    for (int64_t d = 0; d < rows.head_dim; d += kLanes) {
      const int64_t dims = rows.head_dim - d < kLanes ? rows.head_dim - d : kLanes;
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load_scaled(key_rows[i], d, dims);
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
    const ScaledRow<T> row = cursor.next();
    for (int64_t d = 0; d < padded_dim; d += kLanes) {
      store(out + key * padded_dim + d, load_scaled(row, d, rows.head_dim - d));
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

// Some consecutive positions whose scores are known, and their values.
template <typename T>
struct ValueBlock {
  const T* values;
  const float* scales;  // of the values; null unless codes
  int64_t row;          // elements from one value to the next
  int64_t columns;      // elements of a value
  int64_t position;
  int64_t count;

  KeyRange visible(const QueryRows& rows, int64_t query) const {
    const int64_t last = rows.first_position + query / rows.group - position;
    const int64_t first = last - rows.window_size + 1;
    const int64_t begin = first > 0 ? first : 0;
    return {begin < count ? begin : count, last + 1 < count ? last + 1 : count};
  }
};

// Scores of codes become those of keys, weights of values those of codes.
template <typename T>
void apply_scales(float* numbers, const float* scales, int64_t count) {
  if constexpr (kIsCode<T>) {
    for (int64_t j = 0; j < count; ++j) numbers[j] *= scales[j];
  }
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
template <typename T>
void advance_edge(const QueryRows& rows, const ValueBlock<T>& block, int64_t row, int64_t count,
                  float* scores) {
  for (int64_t r = 0; r < count; ++r) {
    float* row_scores = scores + r * kKeyBlock;
    mask(row_scores, block.visible(rows, row + r));
    exponentiate(row_scores, rows.max[row + r], rows.sum[row + r],
                 rows.acc + (row + r) * rows.padded_dim, rows.padded_dim);
    apply_scales<T>(row_scores, block.scales, block.count);
  }
  for (int64_t r = 0; r < count;) {
    const KeyRange range = block.visible(rows, row + r);
    const int64_t token_end = ((row + r) / rows.group + 1) * rows.group - row;
    const int64_t next = token_end < count ? token_end : count;
    product<Into::kAdd>({scores + r * kKeyBlock + range.begin, kKeyBlock, 1},
                        block.values + range.begin * block.row, block.row, range.end - range.begin,
                        rows.acc + (row + r) * rows.padded_dim, rows.padded_dim, next - r,
                        block.columns);
    r = next;
  }
}

// Advances the softmax of rows [row, row + count), whose scores are given.
template <typename T>
void advance(const QueryRows& rows, const ValueBlock<T>& block, int64_t row, int64_t count,
             float* scores) {
  if (block.visible(rows, row).end < kKeyBlock || block.visible(rows, row + count - 1).begin > 0) {
    return advance_edge(rows, block, row, count, scores);
  }
  float* acc = rows.acc + row * rows.padded_dim;
  for (int64_t r = 0; r < count; ++r) {
    exponentiate(scores + r * kKeyBlock, rows.max[row + r], rows.sum[row + r],
                 acc + r * rows.padded_dim, rows.padded_dim);
    apply_scales<T>(scores + r * kKeyBlock, block.scales, kKeyBlock);
  }
  product<Into::kAdd>({scores, kKeyBlock, 1}, block.values, block.row, kKeyBlock, acc,
                      rows.padded_dim, count, block.columns);
}

void attend_packed(const QueryRows& rows, const PackedBlock& packed, float* scores) {
  const ValueBlock<float> block = {packed.values,   nullptr,         rows.padded_dim,
                                   rows.padded_dim, packed.position, packed.count};
  for (int64_t row = 0; row < rows.rows; row += kScoreRows) {
    const int64_t left = rows.rows - row;
    const int64_t count = left < kScoreRows ? left : kScoreRows;
    const bool past = block.visible(rows, row).begin >= block.count;
    if (past || block.visible(rows, row + count - 1).end <= 0) continue;
    product<Into::kOverwrite>({rows.q + row * rows.head_dim, rows.head_dim, 1}, packed.keys,
                              kKeyBlock, rows.head_dim, scores, kKeyBlock, count, kKeyBlock);
    advance(rows, block, row, count, scores);
  }
}

// scores[r, j] = <q[r], keys[j]> for kRows queries and kKeys keys, with one register of sums per
// pair, folded together at the end.
template <int kRows, int kKeys, typename T>
void score_square(const float* q, const T* keys, int64_t head_dim, float* scores) {
  static_assert(kRows * kKeys <= kLanes);
  Vec sums[kRows][kKeys];
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kKeys; ++j) sums[r][j] = Vec{};
  }
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    Vec query[kRows];
    for (int r = 0; r < kRows; ++r) query[r] = load(q + r * head_dim + d);
    for (int j = 0; j < kKeys; ++j) {
      const Vec key = load(keys + j * head_dim + d);
      for (int r = 0; r < kRows; ++r) sums[r][j] = fma(query[r], key, sums[r][j]);
    }
  }
  Vec folded[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    folded[i] = i < kRows * kKeys ? sums[i / kKeys][i % kKeys] : Vec{};
  }
  float dots[kLanes];
  store(dots, reduce_add_each(folded));
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kKeys; ++j) scores[r * kKeyBlock + j] = dots[r * kKeys + j];
  }
  if (d == head_dim) return;
  const int rest = static_cast<int>(head_dim - d);
  for (int r = 0; r < kRows; ++r) {
    const Vec query = load_partial(q + r * head_dim + d, rest);
    for (int j = 0; j < kKeys; ++j) {
      scores[r * kKeyBlock + j] += reduce_add(query * load_partial(keys + j * head_dim + d, rest));
    }
  }
}

template <int kRows, typename T>
void score_rows(const float* q, const T* keys, int64_t count, int64_t head_dim, float* scores) {
  constexpr int kKeys = kLanes / kRows;
  int64_t j = 0;
  for (; j + kKeys <= count; j += kKeys) {
    score_square<kRows, kKeys>(q, keys + j * head_dim, head_dim, scores + j);
  }
  for (; j < count; ++j) score_square<kRows, 1>(q, keys + j * head_dim, head_dim, scores + j);
}

template <typename T>
void score_unpacked(const float* q, int64_t rows, const T* keys, int64_t count, int64_t head_dim,
                    float* scores) {
  constexpr int64_t kMost = 4;  // rows that share a converted key
  for (; rows > 0; rows -= kMost, q += kMost * head_dim, scores += kMost * kKeyBlock) {
    switch (rows) {
      case 1: score_rows<1>(q, keys, count, head_dim, scores); break;
      case 2: score_rows<2>(q, keys, count, head_dim, scores); break;
      case 3: score_rows<3>(q, keys, count, head_dim, scores); break;
      default: score_rows<4>(q, keys, count, head_dim, scores); break;
    }
  }
}

template <typename T>
void attend_unpacked(const QueryRows& rows, const UnpackedKeys& run, float* scores) {
  const auto* keys = static_cast<const T*>(run.keys);
  const auto* values = static_cast<const T*>(run.values);
  for (int64_t first = 0; first < run.count; first += kKeyBlock) {
    const int64_t left = run.count - first;
    const ValueBlock<T> block = {values + first * rows.head_dim,
                                 kIsCode<T> ? run.value_scales + first : nullptr,
                                 rows.head_dim,
                                 rows.head_dim,
                                 run.position + first,
                                 left < kKeyBlock ? left : kKeyBlock};
    score_unpacked(rows.q, rows.rows, keys + first * rows.head_dim, block.count, rows.head_dim,
                   scores);
    for (int64_t r = 0; r < rows.rows && kIsCode<T>; ++r) {
      apply_scales<T>(scores + r * kKeyBlock, run.key_scales + first, block.count);
    }
    advance(rows, block, 0, rows.rows, scores);
  }
}

}  // namespace

extern const ops::SoftmaxAttentionKernels kSoftmaxAttentionKernels;
const ops::SoftmaxAttentionKernels kSoftmaxAttentionKernels = {
    {pack_keys<float>, pack_keys<f16>, pack_keys<bf16>, pack_keys<Code>},
    {pack_values<float>, pack_values<f16>, pack_values<bf16>, pack_values<Code>},
    {round_row<float>, round_row<f16>, round_row<bf16>},
    attend_packed,
    {attend_unpacked<float>, attend_unpacked<f16>, attend_unpacked<bf16>, attend_unpacked<Code>},
};

}  // namespace spb::SPB_ISA
