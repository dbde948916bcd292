#include "core/simd/vec.h"
#include "ops/rope/rope_kernels.h"

namespace spb::ops::SPB_ISA {
using namespace spb::SPB_ISA;
namespace {

constexpr int kWide = kLanes / 2;  // lanes of double
static_assert(kRopePadding % kWide == 0);

typedef double VecD __attribute__((vector_size(kWide * 8)));
typedef int64_t VecL __attribute__((vector_size(kWide * 8)));
typedef float HalfVec __attribute__((vector_size(kWide * 4)));

void store_as_float(float* p, VecD v) {
  const HalfVec narrow = __builtin_convertvector(v, HalfVec);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}

// Sine and cosine of non-negative angles below 2^50. The angle is reduced to r in [-pi/4, pi/4];
// there the Taylor polynomials are exact to 2e-9, well below the rounding to f32.
void store_sine_and_cosine(VecD angle, float* sine, float* cosine) {
  constexpr double kShifter = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const VecD biased = angle * 0.63661977236758134 + kShifter;
  const VecD n = biased - kShifter;
  // pi/2 in two parts; the first has 33 bits, so its product with n < 2^20 is exact.
  const VecD r = (angle - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11;
  const VecD r2 = r * r;
  const VecD s =
      r + r * r2 * (-1.0 / 6 + r2 * (1.0 / 120 + r2 * (-1.0 / 5040 + r2 * (1.0 / 362880))));
  const VecD c =
      1.0 + r2 * (-0.5 +
                  r2 * (1.0 / 24 + r2 * (-1.0 / 720 + r2 * (1.0 / 40320 + r2 * (-1.0 / 3628800)))));
  // The quarter turn: odd ones swap sine and cosine, each then has its own sign.
  const VecL quarter = (VecL)biased;
  const VecL odd = (quarter & 1) != 0;
  store_as_float(sine, (VecD)((VecL)(odd ? c : s) ^ ((quarter & 2) << 62)));
  store_as_float(cosine, (VecD)((VecL)(odd ? s : c) ^ (((quarter + 1) & 2) << 62)));
}

void rotate_half(float* x, const float* cosine, const float* sine, int64_t pairs) {
  int64_t j = 0;
  for (; j + kLanes <= pairs; j += kLanes) {
    const Vec a = load(x + j), b = load(x + pairs + j);
    const Vec c = load(cosine + j), s = load(sine + j);
    store(x + j, a * c - b * s);
    store(x + pairs + j, a * s + b * c);
  }
  if (j == pairs) return;
  const int rest = static_cast<int>(pairs - j);
  const Vec a = load_partial(x + j, rest), b = load_partial(x + pairs + j, rest);
  const Vec c = load(cosine + j), s = load(sine + j);  // the tables are padded
  store_partial(x + j, a * c - b * s, rest);
  store_partial(x + pairs + j, a * s + b * c, rest);
}

// Exchanges lanes 2i and 2i + 1.
Vec swap_neighbors(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_permute_ps((__m512)v, 0xb1);
#elif defined(__AVX2__)
  return (Vec)_mm256_permute_ps((__m256)v, 0xb1);
#else
  return Vec{v[1], v[0], v[3], v[2]};
#endif
}

// The tables hold every cosine twice, and every sine first negated, then plain.
void rotate_interleaved(float* x, const float* cosines, const float* sines, int64_t elements) {
  int64_t c = 0;
  for (; c + kLanes <= elements; c += kLanes) {
    const Vec v = load(x + c);
    store(x + c, v * load(cosines + c) + swap_neighbors(v) * load(sines + c));
  }
  if (c == elements) return;
  const int rest = static_cast<int>(elements - c);
  const Vec v = load_partial(x + c, rest);
  store_partial(x + c, v * load(cosines + c) + swap_neighbors(v) * load(sines + c), rest);
}

void spread_tables(const float* cosine, const float* sine, int64_t padded, float* cosines,
                   float* sines) {
  for (int64_t j = 0; j < padded; ++j) {
    cosines[2 * j] = cosines[2 * j + 1] = cosine[j];
    sines[2 * j] = -sine[j];
    sines[2 * j + 1] = sine[j];
  }
}

}  // namespace

void rope_tokens(const RopeTokens& tokens, int64_t begin, int64_t end, float* table) {
  const int64_t padded = (tokens.pairs + kRopePadding - 1) / kRopePadding * kRopePadding;
  float* cosine = table;
  float* sine = table + padded;
  for (int64_t i = begin; i < end; ++i) {
    const auto position = static_cast<double>(tokens.positions[i]);
    for (int64_t j = 0; j < padded; j += kWide) {
      VecD frequency;
      __builtin_memcpy(&frequency, tokens.frequencies + j, sizeof frequency);
      store_sine_and_cosine(frequency * position, sine + j, cosine + j);
    }
    float* x = tokens.x + i * tokens.heads * tokens.head_stride;
    if (tokens.interleaved) {
      float* cosines = table + 2 * padded;
      spread_tables(cosine, sine, padded, cosines, cosines + 2 * padded);
      for (int64_t h = 0; h < tokens.heads; ++h) {
        rotate_interleaved(x + h * tokens.head_stride, cosines, cosines + 2 * padded,
                           2 * tokens.pairs);
      }
    } else {
      for (int64_t h = 0; h < tokens.heads; ++h) {
        rotate_half(x + h * tokens.head_stride, cosine, sine, tokens.pairs);
      }
    }
  }
}

}  // namespace spb::ops::SPB_ISA
