#include "core/simd/bytes.h"
#include "spike/threshold/threshold_kernels.h"

namespace spb::spike::SPB_ISA {
using namespace spb::SPB_ISA;
namespace {

constexpr int kSums = static_cast<int>(kThresholdPartials) / kLanes;

inline Vec magnitude(Vec v) { return (Vec)((VecI)v & 0x7fffffff); }

// To the nearest integer, ties to even; above 2^23 every float is one. Not an instruction of its
// own: the division beside it takes longer.
inline Vec rounded_magnitude(Vec size) {
  const Vec shifter = broadcast(0x1p23f);
  return size < shifter ? (size + shifter) - shifter : size;
}

// Counts of registers of channels. The lanes beyond a ragged end hold drive 0, which fires nothing.
struct Firing {
  Vec threshold;
  Vec dead_zone;
  Vec largest;
  VecI active;  // minus the number, lane by lane: a comparison that holds is -1
  VecI bursts;

  inline VecI fire(Vec x) {
    const Vec limit = broadcast(static_cast<float>(kCoreLimit));
    const Vec rounded = rounded_magnitude(magnitude(x / threshold));
    const Vec size = rounded > dead_zone ? rounded : broadcast(0.0f);
    largest = max(largest, size);
    active += (VecI)(size > broadcast(0.0f));
    bursts += (VecI)(size > limit);
    const VecI core = __builtin_convertvector(min(size, limit), VecI);
    const VecI sign = (VecI)x >> 31;  // -1 or 0
    return (core ^ sign) - sign;
  }
};

}  // namespace

float absolute_sum(const float* x, int64_t channels) {
  Vec sums[kSums] = {};
  int64_t c = 0;
  for (; c + kThresholdPartials <= channels; c += kThresholdPartials) {
    for (int i = 0; i < kSums; ++i) sums[i] += magnitude(load(x + c + i * kLanes));
  }
  for (int i = 0; i < kSums && c < channels; ++i, c += kLanes) {
    const int64_t rest = channels - c;
    const Vec part = rest < kLanes ? load_partial(x + c, static_cast<int>(rest)) : load(x + c);
    sums[i] += magnitude(part);
  }
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return reduce_add(sums[0]);
}

void fire_row(const float* x, int64_t channels, float threshold, float dead_zone, int8_t* core,
              FiredRow* fired) {
  Firing firing = {broadcast(threshold), broadcast(dead_zone), Vec{}, VecI{}, VecI{}};
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) store_low_bytes(core + c, firing.fire(load(x + c)));
  if (c < channels) {
    const int rest = static_cast<int>(channels - c);
    int8_t bytes[kLanes];
    store_low_bytes(bytes, firing.fire(load_partial(x + c, rest)));
    __builtin_memcpy(core + c, bytes, static_cast<size_t>(rest));
  }
  fired->largest = reduce_max(firing.largest);
  fired->active = -reduce_add(firing.active);
  fired->bursts = -reduce_add(firing.bursts);
}

void list_active(const int8_t* core, [[maybe_unused]] int64_t channels, int32_t active,
                 int32_t* list) {
  int32_t c = 0;
  int32_t found = 0;
#if defined(__AVX512F__)
  for (; c + kLanes <= channels; c += kLanes) {
    const __m128i counts = _mm_loadu_si128(reinterpret_cast<const __m128i*>(core + c));
    const __mmask16 fired = _mm_test_epi8_mask(counts, counts);
    const VecI indices = (VecI)_mm512_maskz_compress_epi32(fired, (__m512i)(lane_index() + c));
    const int number = __builtin_popcount(fired);
    const auto written = static_cast<__mmask16>((1u << number) - 1u);
    _mm512_mask_storeu_epi32(list + found, written, (__m512i)indices);
    found += number;
  }
#endif
  // Stops at the last one, so that every write lies inside the list although it is made before the
  // count is looked at.
  for (; found < active; ++c) {
    list[found] = c;
    found += core[c] != 0;
  }
}

}  // namespace spb::spike::SPB_ISA
