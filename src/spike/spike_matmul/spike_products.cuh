// What the CUDA kernels of spike_matmul share: operands, the products that make up a group's sum,
// and the roundings.
//
// A sum is held in 32 bits. The cores alone stay below 2^21. Counts and codes beyond int8 take
// part as digits, excess = low + 256 * high, each a tile of its own that is multiplied like the
// cores; products of high digits come first and the sum moves up by 8 bits before the others are
// added. Where digits do not suffice (kDigitCount, kDigitCode) the row is computed in 64 bits.
#pragma once

#include <type_traits>

#include "spike/spike_matmul/spike_matmul_cuda.h"
#include "spike/threshold/spike_counts.cuh"

namespace spb::spike {

inline constexpr int kTileOutputs = static_cast<int>(kDeviceTileRows);
inline constexpr int kWeightBytes = static_cast<int>(kDeviceTileBytes);
// Blocks that share weights, and the tokens of each; together those of a tile of counts.
inline constexpr int kClusterBlocks = 2;
inline constexpr int kBlockTokens = 128;
inline constexpr int kBlockCountBytes = kBlockTokens * static_cast<int>(kScaleGroup);
inline constexpr int kTileTokens = kClusterBlocks * kBlockTokens;
inline constexpr int kCountBytes = kTileTokens * static_cast<int>(kScaleGroup);
inline constexpr int kPieces = static_cast<int>(kScaleGroup) / 16;  // of 16 bytes, in a row

// Largest |count - core| in digits.
inline constexpr int kDigitCount = 1 << 14;

// Up to this many rows of counts read every weight once.
inline constexpr int kFewTokens = 8;

struct DeviceWeight {
  const signed char* codes;
  const float* scales;
  const signed char* channels;  // or nullptr
  const CellExcess* excess;     // of 16 rows and a group, or nullptr
  const int64_t* excess_begin;
  const signed char* digits;
  const int32_t* digit_index;   // or nullptr
  const signed char* far_rows;  // [rows]: 1 for those; or nullptr
  int64_t rows;
  int groups;

  __device__ const signed char* tile(int64_t tile_row, int group) const {
    return codes + (tile_row * groups + group) * kWeightBytes;
  }
};

inline DeviceWeight device_weight(const SpikeWeight& weight) {
  const SpikeWeight::Impl& impl = weight.impl();
  const DeviceTiles& tiles = impl.tiles;
  return {.codes = tiles.codes.as<signed char>(),
          .scales = tiles.scales.as<float>(),
          .channels = tiles.channels.as<signed char>(),
          .excess = tiles.excess.as<CellExcess>(),
          .excess_begin = tiles.excess_begin.as<int64_t>(),
          .digits = tiles.digits.as<signed char>(),
          .digit_index = tiles.digit_index.as<int32_t>(),
          .far_rows = tiles.far_row_flags.as<signed char>(),
          .rows = impl.rows,
          .groups = static_cast<int>(impl.groups())};
}

// Where results go: f32 or bf16, rows `stride` elements apart.
struct DeviceOutput {
  std::byte* y;
  int64_t stride;
  bool bf16;
  const float* bias;  // or nullptr
  bool accumulate;

  // v a + bias, rounded once to f32 and then to the output's type.
  __device__ float result(int64_t row, float threshold, float sum) const {
    return __fmaf_rn(threshold, sum, bias == nullptr ? 0.0f : bias[row]);
  }
  // Once for every result: accumulating, it is added.
  __device__ void store(int64_t token, int64_t row, float value) const {
    const int64_t place = token * stride + row;
    bf16 ? put(reinterpret_cast<__nv_bfloat16*>(y) + place, value)
         : put(reinterpret_cast<float*>(y) + place, value);
  }

 private:
  template <typename T>
  __device__ void put(T* to, float value) const {
    T result = cuda::from_float<T>(value);
    if (accumulate) {
      result = cuda::from_float<T>(__fadd_rn(cuda::to_float(*to), cuda::to_float(result)));
    }
    *to = result;
  }
};

inline DeviceOutput device_output(const SpikeMatmulTarget& target) {
  return {target.y.data(), target.y.row_stride_bytes() / block_bytes(target.y.dtype()),
          target.y.dtype() == DType::kBF16,
          target.bias.defined() ? target.bias.as<float>() : nullptr, target.accumulate};
}

// Matrices that one launch multiplies by the same counts.
inline constexpr int kMaxTargets = 4;
struct DeviceTargets {
  DeviceWeight weights[kMaxTargets];
  DeviceOutput outputs[kMaxTargets];
  int64_t first_piece[kMaxTargets + 1];  // of the work, before those of a target
  int count;

  __device__ int target_of(int64_t piece) const {
    int t = 0;
    while (piece >= first_piece[t + 1]) ++t;
    return t;
  }
};

// One launch's worth of targets; pieces_of(weight) says how much work each is.
template <typename PiecesOf>
DeviceTargets device_targets(std::span<const SpikeMatmulTarget> from, PiecesOf pieces_of) {
  DeviceTargets targets{};
  for (const SpikeMatmulTarget& target : from) {
    const int i = targets.count++;
    targets.weights[i] = device_weight(*target.weight);
    targets.outputs[i] = device_output(target);
    targets.first_piece[i + 1] = targets.first_piece[i] + pieces_of(targets.weights[i]);
  }
  return targets;
}

// Counts for products in tiles of kTileTokens tokens and one group. Cores are read where they lie,
// digits are tiles swizzled like those of weights.
struct CountTiles {
  const signed char* core;  // [tokens, channels]
  int64_t core_stride;      // like the address a multiple of 16 bytes
  signed char* digits;      // low and high ones of the tiles that have them
  int32_t* digit_index;     // [tiles, groups]: as DeviceTiles has it
  int32_t* digits_used;     // tiles that wanted digits
  int digits_capacity;      // tiles that get them; bursts of others make their tokens far
  int32_t* far_tokens;      // tokens to be computed in 64 bits
  int32_t* far_count;
  int32_t* far_flags;  // [tokens]
  int tiles;
  int groups;
};

// Whether multiply_far computes a result. Where results are added, tiles leave it alone.
__device__ inline bool is_far(const CountTiles& tiles, const DeviceWeight& w, int64_t token,
                              int64_t row) {
  return tiles.far_flags[token] != 0 || (w.far_rows != nullptr && w.far_rows[row] != 0);
}

// Tiles of one side that take part in a group's sum, from an entry of an index.
__device__ inline int digit_tiles(int32_t entry) { return entry < 0 ? 1 : 2 + (entry & 1); }

// Which tile of digits, low (1) or high (2), an entry of an index means.
__device__ inline int digit_tile(int32_t entry, int which) { return entry / 2 + which - 1; }

// How often 256 is in the product of two tiles: core 0, low digits 1, high digits 2.
__device__ inline int product_level(int weights, int counts) {
  return (weights == 2 ? 1 : 0) + (counts == 2 ? 1 : 0);
}

// Calls product(weight_tile, count_tile, shift) for every pair of tiles, those of the highest level
// first; with `shift` the sum so far counts 256 times.
template <typename Product>
__device__ void for_each_product(int weight_tiles, int count_tiles, Product product) {
  if (weight_tiles + count_tiles == 2) return product(0, 0, false);
  const int highest = product_level(weight_tiles - 1, count_tiles - 1);
  for (int level = highest; level >= 0; --level) {
    bool shift = level < highest;
    for (int pair = 0; pair < weight_tiles * count_tiles; ++pair) {
      const int w = pair / count_tiles;
      const int s = pair % count_tiles;
      if (product_level(w, s) != level) continue;
      product(w, s, shift);
      shift = false;
    }
  }
}

// |sum| < 2^22: the shifter leaves it in the low bits of a float.
__device__ inline float small_sum(int sum) {
  return __fsub_rn(__int_as_float(0x4b400000 + sum), 12582912.0f);
}

// Finds the counts beyond int8 and makes their digits; in the context's arena.
CountTiles tile_counts(Context& context, const DeviceCounts& counts);

// Every target by the tokens of `tiles`, those that are far excepted. Gated: of two targets alike,
// the first a gate, only y of the second is written, as spike_gated_matmul has it, in bf16 whose
// rows lie 16 bytes apart or a multiple of it.
void multiply_warpgroup_tiles(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                              std::span<const SpikeMatmulTarget> targets, bool gated = false);
void multiply_warp_tiles(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                         std::span<const SpikeMatmulTarget> targets);

// In 64 bits, each result once: the far tokens, and the far rows of the weight.
void multiply_far(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                  const SpikeMatmulTarget& target);
void multiply_far_gated(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                        const SpikeGatedMatmulArgs& args);

// Which of two ways a row of counts takes: how many of its channels fire is known to the device
// alone. Both ways are queued, and the kernels of one end at once.
struct Choice {
  const int* fired = nullptr;  // how many channels do; nullptr: what is queued is done
  int most = 0;                // of them that leave the row to events

  __device__ bool takes_events() const { return fired == nullptr || *fired <= most; }
  __device__ bool takes_all() const { return fired == nullptr || *fired > most; }
};

// For the one row of `counts`; in the context's arena.
Choice choose_by_silence(Context& context, const DeviceCounts& counts, int most_fired);

void multiply_few_tokens(Context& context, const DeviceCounts& counts,
                         std::span<const SpikeMatmulTarget> targets, const Choice& choice = {});

// One row of counts, reading only the weights of firing channels.
void multiply_fired(Context& context, const DeviceCounts& counts,
                    std::span<const SpikeMatmulTarget> targets, const Choice& choice = {});

}  // namespace spb::spike
