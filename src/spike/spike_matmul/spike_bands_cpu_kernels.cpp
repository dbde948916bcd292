// Products of firing channels with their rows of a band (layout in spike_bands.h).
#include "spike/spike_matmul/spike_bands.h"
#include "spike/spike_matmul/spike_rescale.h"

namespace spb::spike::SPB_ISA {
namespace {

// Rows of weights whose bytes fill one register; their sums fill four.
constexpr int kStripRows = 4 * kLanes;
// Strips that share one reading of the list of events; limited by the number of registers.
constexpr int kStrips = kLanes == 16 ? 4 : 1;

// Sums of four rows of channels times their counts for one strip. The order of the results is that
// of byte interleaving within 128 bits; in_row_order restores it.
#if defined(__AVX512F__)
inline void add_quad(const uint8_t* const* rows, VecI counts, VecI* sums) {
  const __m512i r0 = (__m512i)load_int(rows[0]);
  const __m512i r1 = (__m512i)load_int(rows[1]);
  const __m512i r2 = (__m512i)load_int(rows[2]);
  const __m512i r3 = (__m512i)load_int(rows[3]);
  const __m512i low01 = _mm512_unpacklo_epi8(r0, r1);
  const __m512i high01 = _mm512_unpackhi_epi8(r0, r1);
  const __m512i low23 = _mm512_unpacklo_epi8(r2, r3);
  const __m512i high23 = _mm512_unpackhi_epi8(r2, r3);
  sums[0] = dot_bytes<8>(sums[0], (VecI)_mm512_unpacklo_epi16(low01, low23), counts);
  sums[1] = dot_bytes<8>(sums[1], (VecI)_mm512_unpackhi_epi16(low01, low23), counts);
  sums[2] = dot_bytes<8>(sums[2], (VecI)_mm512_unpacklo_epi16(high01, high23), counts);
  sums[3] = dot_bytes<8>(sums[3], (VecI)_mm512_unpackhi_epi16(high01, high23), counts);
}

// A transposition of 4 x 4 blocks of 128 bits.
inline void in_row_order(VecI* sums) {
  const auto a = (__m512i)sums[0];
  const auto b = (__m512i)sums[1];
  const auto c = (__m512i)sums[2];
  const auto d = (__m512i)sums[3];
  const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44);
  const __m512i ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44);
  const __m512i cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
  sums[0] = (VecI)_mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
  sums[1] = (VecI)_mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
  sums[2] = (VecI)_mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
  sums[3] = (VecI)_mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
}
#elif defined(__AVX2__)
inline void add_quad(const uint8_t* const* rows, VecI counts, VecI* sums) {
  const __m256i r0 = (__m256i)load_int(rows[0]);
  const __m256i r1 = (__m256i)load_int(rows[1]);
  const __m256i r2 = (__m256i)load_int(rows[2]);
  const __m256i r3 = (__m256i)load_int(rows[3]);
  const __m256i low01 = _mm256_unpacklo_epi8(r0, r1);
  const __m256i high01 = _mm256_unpackhi_epi8(r0, r1);
  const __m256i low23 = _mm256_unpacklo_epi8(r2, r3);
  const __m256i high23 = _mm256_unpackhi_epi8(r2, r3);
  sums[0] = dot_bytes<8>(sums[0], (VecI)_mm256_unpacklo_epi16(low01, low23), counts);
  sums[1] = dot_bytes<8>(sums[1], (VecI)_mm256_unpackhi_epi16(low01, low23), counts);
  sums[2] = dot_bytes<8>(sums[2], (VecI)_mm256_unpacklo_epi16(high01, high23), counts);
  sums[3] = dot_bytes<8>(sums[3], (VecI)_mm256_unpackhi_epi16(high01, high23), counts);
}

inline void in_row_order(VecI* sums) {
  const auto a = (__m256i)sums[0];
  const auto b = (__m256i)sums[1];
  const auto c = (__m256i)sums[2];
  const auto d = (__m256i)sums[3];
  sums[0] = (VecI)_mm256_permute2x128_si256(a, b, 0x20);
  sums[1] = (VecI)_mm256_permute2x128_si256(c, d, 0x20);
  sums[2] = (VecI)_mm256_permute2x128_si256(a, b, 0x31);
  sums[3] = (VecI)_mm256_permute2x128_si256(c, d, 0x31);
}
#else
inline void add_quad(const uint8_t* const* rows, VecI counts, VecI* sums) {
  for (int r = 0; r < 4; ++r) {
    const VecI count = (VecI)((VecU)counts << (24 - 8 * r)) >> 24;
    for (int v = 0; v < 4; ++v) sums[v] += load_widened(rows[r] + kLanes * v) * count;
  }
}

inline void in_row_order(VecI*) {}
#endif

// Where the codes of one channel of a quad begin, from row first_row of the band.
inline const uint8_t* codes_of(const SpikeBandArgs& a, const EventQuad& quad, int r,
                               int64_t first_row) {
  return reinterpret_cast<const uint8_t*>(a.band) + quad.slots[r] * a.band_rows + first_row;
}

inline void ask_for(const SpikeBandArgs& a, const EventQuad& quad, int64_t first_row) {
  for (int r = 0; r < 4; ++r) {
    const uint8_t* row = codes_of(a, quad, r, first_row);
    for (int line = 0; line < kStrips * kStripRows; line += 64) __builtin_prefetch(row + line);
  }
}

// Adds one group to the results of kStrips strips.
void add_group(const SpikeBandArgs& a, int64_t group, int64_t first_row, float* results) {
  const EventQuad* quad = a.events.quads + (group > 0 ? a.events.quad_end[group - 1] : 0);
  const EventQuad* end = a.events.quads + a.events.quad_end[group];
  VecI sums[kStrips][4];
  for (int s = 0; s < kStrips; ++s) {
    for (int v = 0; v < 4; ++v) sums[s][v] = broadcast_int(a.events.offsets[group]);
  }
  for (; quad < end; ++quad) {
    ask_for(a, quad[kQuadsAhead], first_row);
    const VecI counts = broadcast_quad(quad->counts);
    const uint8_t* first[4];
    for (int r = 0; r < 4; ++r) first[r] = codes_of(a, *quad, r, first_row);
    for (int s = 0; s < kStrips; ++s) {
      const int at = s * kStripRows;
      const uint8_t* rows[4] = {first[0] + at, first[1] + at, first[2] + at, first[3] + at};
      add_quad(rows, counts, sums[s]);
    }
  }
  const auto* scales = reinterpret_cast<const float*>(
      a.band + (group * kBandGroupSlots + kBandChannelSlots) * a.band_rows);
  for (int s = 0; s < kStrips; ++s) {
    in_row_order(sums[s]);
    for (int v = 0; v < 4; ++v) {
      const int64_t row = first_row + s * kStripRows + v * kLanes;
      Vec exact = to_floats(sums[s][v]);
      if (a.corrections != nullptr) {
        exact = exact_sum_to_floats(sums[s][v],
                                    a.corrections + (row / 16 * a.groups + group) * 16 + row % 16);
      }
      store(results + row, fused(exact, load(scales + row), load(results + row)));
    }
  }
}

}  // namespace

void multiply_spike_band(const SpikeBandArgs& a) {
  float results[kLongestBand] = {};
  for (int64_t g = 0; g < a.groups; ++g) {
    for (int64_t row = 0; row < a.band_rows; row += kStrips * kStripRows) {
      add_group(a, g, row, results);
    }
  }
  for (int64_t row = 0; row < a.band_rows; row += kLanes) {
    put_results(a.out, 0, row, a.rows, load(results + row), broadcast(a.threshold));
  }
}

}  // namespace spb::spike::SPB_ISA
