// Weights in blocks as the tensor cores of a card want them: tiles of 16 rows by 64 columns, two
// blocks of each row, in the order in which a warp reads them.
//
// A band is 16 rows; the tiles of a band lie one after another, the bands too. What a matrix lacks
// at its last band or tile is zero. In a tile, with quad and pair of a lane as core/cuda/mma.cuh
// has them, and elements 8 pair .. 8 pair + 7 of a block as that lane's unit:
//   q8_0        [block][lane]: units of rows quad and quad + 8, 8 bytes each, code + 128 in a byte;
//               of four elements in a word the two in the middle have changed places
//   q4_0, q4_1  [lane][block]: units of rows quad and quad + 8, 4 bytes each; element i begins at
//               bit 4 (i / 2) + 16 (i % 2)
//   then        [quad][block]: f16 scales of rows quad and quad + 8, and after these for q4_1 their
//               minima
// So the elements of a word come out as pairs by a mask, some after a shift. As the bits of a bf16,
// a number below 256 is 2^-133 of it: one fused multiply and add makes a pair of numbers of it.
#pragma once

#include <cstring>

#include "ops/matmul/matmul_planes.cuh"

namespace spb::ops {

inline constexpr int kTileRows = 16;
inline constexpr int kTileBlocks = 2;
inline constexpr int kTileColumns = kTileBlocks * kBlock;
inline constexpr int kTilePairs = 4;  // lanes that share a row

__host__ __device__ constexpr int tile_code_bytes(DType dtype) {
  return kTileRows * kTileColumns / (dtype == DType::kQ8_0 ? 1 : 2);
}
__host__ __device__ constexpr int tile_bytes(DType dtype) {
  return tile_code_bytes(dtype) + kTileRows * kTileBlocks * (dtype == DType::kQ4_1 ? 4 : 2);
}
__host__ __device__ inline int64_t tiles_of(int64_t columns) {
  return (columns + kTileColumns - 1) / kTileColumns;
}
__host__ __device__ inline int64_t bands_of(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

// Where a block of a row, or a part of it, lies in its tile.
struct TilePlace {
  int quad;
  int half;   // 1 for rows quad + 8
  int block;  // of the tile

  __host__ __device__ TilePlace(int64_t row, int64_t block_of_row)
      : quad(static_cast<int>(row % 8)),
        half(static_cast<int>(row % kTileRows / 8)),
        block(static_cast<int>(block_of_row % kTileBlocks)) {}

  __host__ __device__ int unit(DType dtype, int pair) const {
    const int lane = quad * kTilePairs + pair;
    return dtype == DType::kQ8_0 ? block * 512 + lane * 16 + half * 8
                                 : lane * 16 + block * 8 + half * 4;
  }
  // Of the scale; the minimum of q4_1 is 4 bytes further.
  __host__ __device__ int scale(DType dtype) const {
    const int bytes = dtype == DType::kQ4_1 ? 8 : 4;  // of the two rows
    return tile_code_bytes(dtype) + (quad * kTileBlocks + block) * bytes + half * 2;
  }
};

// One block, as files have it, into the tile at `tile`.
inline void put_block(DType dtype, const std::byte* from, const TilePlace& place, std::byte* tile) {
  std::memcpy(tile + place.scale(dtype), from, 2);
  if (dtype == DType::kQ4_1) std::memcpy(tile + place.scale(dtype) + 4, from + 2, 2);
  const std::byte* codes = from + 2 * scales_per_block(dtype);
  for (int pair = 0; pair < kTilePairs; ++pair) {
    std::byte* to = tile + place.unit(dtype, pair);
    if (dtype == DType::kQ8_0) {
      constexpr int kOrder[] = {0, 2, 1, 3};
      for (int i = 0; i < 8; ++i) {
        to[i] = codes[pair * 8 + i / 4 * 4 + kOrder[i % 4]] ^ std::byte{128};
      }
      continue;
    }
    uint32_t word = 0;
    for (int i = 0; i < 8; ++i) {
      const auto byte = static_cast<uint32_t>(codes[(pair * 8 + i) % 16]);
      const uint32_t code = pair < 2 ? byte & 15u : byte >> 4;
      word |= code << (4 * (i / 2) + 16 * (i % 2));
    }
    std::memcpy(to, &word, sizeof word);
  }
}

// What unpacked codes are multiplied by, to be large enough as bf16.
inline constexpr float kCodeScale = 0x1p-6f;

// a * b + c of pairs of bf16, equal ones in b and c.
__device__ inline uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// The codes of a unit times kCodeScale in bf16, exact: elements 2 i and 2 i + 1 in word i.
template <DType kDtype>
__device__ void unpack_unit(const uint32_t* unit, uint32_t (&out)[4]) {
  constexpr uint32_t kOne = 0x7f007f00u;        // 2^127: 1 becomes kCodeScale
  constexpr uint32_t kSixteenth = 0x7d007d00u;  // 2^123
  if constexpr (kDtype == DType::kQ8_0) {
    constexpr uint32_t kOffset = 0xc000c000u;  // -128 kCodeScale
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = __byte_perm(unit[i / 2], 0, i % 2 == 0 ? 0x4240 : 0x4341);
      out[i] = fma_pairs(bytes, kOne, kOffset);
    }
  } else {
    constexpr uint32_t kOffset = kDtype == DType::kQ4_0 ? 0xbe00be00u : 0u;  // -8 kCodeScale
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t nibbles = unit[0] >> (i / 2 * 8) & (i % 2 == 0 ? 0x000f000fu : 0x00f000f0u);
      out[i] = fma_pairs(nibbles, i % 2 == 0 ? kOne : kSixteenth, kOffset);
    }
  }
}

// read_unit (matmul_planes.cuh) of a matrix in tiles.
template <DType kDtype>
__device__ void read_tile_unit(const Planes& w, int64_t row, int64_t unit, float (&out)[8]) {
  const int64_t block = unit / kTilePairs;
  const std::byte* tile =
      w.codes + (row / kTileRows * tiles_of(w.columns) + block / kTileBlocks) * tile_bytes(kDtype);
  const TilePlace place(row, block);
  const float d = cuda::half_at(tile + place.scale(kDtype)) / kCodeScale;
  const float m = kDtype == DType::kQ4_1 ? cuda::half_at(tile + place.scale(kDtype) + 4) : 0.0f;
  const auto* words = reinterpret_cast<const uint32_t*>(
      tile + place.unit(kDtype, static_cast<int>(unit % kTilePairs)));
  uint32_t codes[4];
  unpack_unit<kDtype>(words, codes);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float code =
        __uint_as_float(i % 2 == 0 ? codes[i / 2] << 16 : codes[i / 2] & 0xffff0000u);
    out[i] = d * code + m;
  }
}

}  // namespace spb::ops
