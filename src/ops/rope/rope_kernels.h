// The inside of rope: the CPU path and its kernels, one per instruction set. Arguments have been
// checked.
#pragma once

#include <cstdint>

#include "ops/rope/rope.h"

namespace spb::ops {

void rope_cpu(Context& context, const RopeArgs& args);

// Tables are padded to a multiple of this many pairs, so that sines need no tail.
inline constexpr int64_t kRopePadding = 16;

struct RopeTokens {
  float* x;
  int64_t heads;
  int64_t head_stride;  // in floats; tokens are heads * head_stride apart
  int64_t pairs;
  bool interleaved;
  const int64_t* positions;
  const double* frequencies;  // radians per position, zero behind `pairs`
};

// Rotates tokens [begin, end). `table` is scratch of 6 * padded pairs.
namespace isa_portable {
void rope_tokens(const RopeTokens& tokens, int64_t begin, int64_t end, float* table);
}
namespace isa_avx2 {
void rope_tokens(const RopeTokens& tokens, int64_t begin, int64_t end, float* table);
}
namespace isa_avx512 {
void rope_tokens(const RopeTokens& tokens, int64_t begin, int64_t end, float* table);
}

}  // namespace spb::ops
