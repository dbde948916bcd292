// Bands: the channel-major layout of event-driven products.
//
// A band is 256 consecutive rows of weights. Its codes lie channel by channel, so that a silent
// channel is skipped without being read; bands follow each other along N, the last one padded.
//
//   bytes of a group of 128 channels of a band
//   codes    32768: byte 256 c + r is the core code of channel c, row r, plus 128
//   scales   1024: f32 of 256 rows
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/matmul/matmul_row_output.h"

namespace spb::spike {

inline constexpr int64_t kBandRows = 256;
inline constexpr int64_t kBandCodeBytes = kBandRows * 128;
inline constexpr int64_t kBandGroupBytes = kBandCodeBytes + kBandRows * 4;

// Four firing channels of one group, missing ones with count 0. Offsets are bytes from the start
// of the band.
struct EventQuad {
  int32_t offsets[4];
  int8_t counts[4];
};

// So many quads may be read behind the last one, to ask for weights ahead.
inline constexpr int64_t kQuadsAhead = 4;

// The events of one row of counts.
struct EventList {
  const EventQuad* quads;
  const int32_t* quad_end;  // [groups]: of each group; the next group starts there
  const int32_t* offsets;   // [groups]: -128 * sum of the core counts
};

struct SpikeBandArgs {
  const std::byte* band;
  int64_t groups;
  int64_t rows;  // of the band that exist
  EventList events;
  const int64_t* corrections;  // [16 blocks, groups, 16] to add to the sums, or null
  float threshold;
  ops::RowOutput out;
};

namespace isa_portable {
void multiply_spike_band(const SpikeBandArgs& args);
}
namespace isa_avx2 {
void multiply_spike_band(const SpikeBandArgs& args);
}
namespace isa_avx512 {
void multiply_spike_band(const SpikeBandArgs& args);
}

}  // namespace spb::spike
