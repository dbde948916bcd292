// Kernels of softmax_attention: plain pointers, no checks, no threads. One table per instruction
// set; softmax_attention_cpu.cpp and softmax_attention_prefill_cpu.cpp split the work over them.
//
// The query heads of one key/value head share every key that is read, so their queries form one
// matrix: row t * group + g is head g of the group at token t.
#pragma once

#include <cstdint>

namespace spb::ops {

inline constexpr int kKeyBlock = 64;      // keys that are packed and scored together
inline constexpr int kLaneMultiple = 16;  // packed rows are padded with zeros to whole registers

// A matrix of queries, scaled, and the running softmax of each of its rows.
struct QueryRows {
  const float* q;  // [rows, head_dim]
  int64_t rows;
  int64_t group;           // rows per token
  int64_t first_position;  // of the token of row 0
  int64_t window_size;     // keys visible to a token, itself included; never 0
  int64_t head_dim;
  int64_t padded_dim;  // head_dim rounded up to kLaneMultiple
  float* max;          // [rows], largest score so far
  float* sum;          // [rows], sum of exp(score - max)
  float* acc;          // [rows, padded_dim], sum of exp(score - max) * value
};

// Up to kKeyBlock consecutive positions in the layout that the products want.
struct PackedBlock {
  const float* keys;    // [head_dim, kKeyBlock], zero beyond count
  const float* values;  // [kKeyBlock, padded_dim], zero beyond head_dim
  int64_t position;     // of key 0
  int64_t count;
};

// Consecutive positions that lie behind each other in the cache.
struct UnpackedKeys {
  const void* keys;           // [count, head_dim]
  const void* values;         // [count, head_dim]
  const float* key_scales;    // [count]; null unless i8
  const float* value_scales;  // [count]; null unless i8
  int64_t position;           // of key 0
  int64_t count;
};

// The rows of one key/value head: position j lives in row j mod capacity.
struct RingRows {
  const void* data;     // [capacity, head_dim]
  const float* scales;  // [capacity]; null unless i8
  int64_t capacity;
  int64_t head_dim;
};

using PackRows = void (*)(const RingRows& rows, int64_t position, int64_t count, int64_t padded_dim,
                          float* out);
using RoundRow = void (*)(const float* in, void* out, int64_t count);

struct SoftmaxAttentionKernels {
  // Indexed by DType kF32, kF16, kBF16, kI8. Packing multiplies codes by their scales.
  PackRows pack_keys[4];
  PackRows pack_values[4];
  RoundRow round_row[3];
  // Advances the softmax of the rows that see the block. `scores` holds kScoreRows * kKeyBlock.
  void (*attend_packed)(const QueryRows& rows, const PackedBlock& block, float* scores);
  // For few rows, where packing would not pay. `scores` holds rows * kKeyBlock.
  void (*attend_unpacked[4])(const QueryRows& rows, const UnpackedKeys& keys, float* scores);
};

inline constexpr int kScoreRows = 6;

}  // namespace spb::ops

namespace spb::isa_portable {
extern const ops::SoftmaxAttentionKernels kSoftmaxAttentionKernels;
}
namespace spb::isa_avx2 {
extern const ops::SoftmaxAttentionKernels kSoftmaxAttentionKernels;
}
namespace spb::isa_avx512 {
extern const ops::SoftmaxAttentionKernels kSoftmaxAttentionKernels;
}
