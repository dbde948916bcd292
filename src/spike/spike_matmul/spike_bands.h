// Bands: the channel-major layout of event-driven products.
//
// A band is R consecutive rows of weights, R = 256, 512 or 1024. Its codes lie channel by channel,
// so that a silent channel is skipped without being read; bands follow each other along N, the last
// one padded. The longer the run of bytes of a channel, the better memory delivers it; shorter
// bands are for sharing few rows among many threads.
//
//   bytes of a group of 128 channels of a band
//   codes    128 R: byte R c + r is the core code of channel c, row r, plus 128
//   scales   4 R: f32 of R rows
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/matmul/matmul_row_output.h"

namespace spb::spike {

inline constexpr int64_t kShortestBand = 256;
inline constexpr int64_t kLongestBand = 1024;
inline constexpr int64_t kBandChannelSlots = 128;
inline constexpr int64_t kBandGroupSlots = kBandChannelSlots + 4;  // of R bytes

// Four firing channels of one group, missing ones with count 0. Channel c of group g is in slot
// kBandGroupSlots * g + c.
struct EventQuad {
  int32_t slots[4];
  int8_t counts[4];
};

// So many quads may be read behind the last one, to ask for weights ahead.
inline constexpr int64_t kQuadsAhead = 6;

// The events of one row of counts.
struct EventList {
  const EventQuad* quads;
  const int32_t* quad_end;  // [groups]: of each group; the next group starts there
  const int32_t* offsets;   // [groups]: -128 * sum of the core counts
};

struct SpikeBandArgs {
  const std::byte* band;
  int64_t band_rows;
  int64_t groups;
  int64_t rows;  // of the band that exist
  EventList events;
  const int64_t* corrections;  // [blocks of the band, groups, 16] to add to the sums, or null
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
