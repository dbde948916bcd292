// Counts for the tensor cores: where they lie, and the digits of those beyond int8.
#include <algorithm>

#include "core/cuda/pack.cuh"
#include "core/cuda/wgmma.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

constexpr int kThreads = 256;
constexpr int kPiecesPerTile = kTileTokens * kPieces;
static_assert(kTileTokens <= kThreads);

using Piece = cuda::Pack<signed char, 16>;

__device__ void mark_far(const CountTiles& tiles, int64_t token) {
  if (atomicExch(&tiles.far_flags[token], 1) != 0) return;
  tiles.far_tokens[atomicAdd(tiles.far_count, 1)] = static_cast<int32_t>(token);
}

// The digits of 16 channels of a token. What they do not hold is left out and the token marked.
__device__ void split_piece(const DeviceCounts& counts, const CountTiles& tiles, int64_t token,
                            int channel, bool have_room, Piece (&digits)[2]) {
  for (int i = 0; i < 16; ++i) {
    digits[0].at[i] = 0;
    digits[1].at[i] = 0;
    if (token >= counts.rows || channel + i >= counts.channels) continue;
    const int excess = counts.excess(token, channel + i, counts.core_count(token, channel + i));
    if (excess == 0) continue;
    if (!have_room || abs(excess) > kDigitCount) {
      mark_far(tiles, token);
      continue;
    }
    const int low = ((excess + 128) & 255) - 128;
    digits[0].at[i] = static_cast<signed char>(low);
    digits[1].at[i] = static_cast<signed char>((excess - low) / 256);
  }
}

// A block looks after one tile.
__global__ void __launch_bounds__(kThreads)
    digits_kernel(const DeviceCounts counts, const CountTiles tiles) {
  __shared__ int slot;
  const int group = static_cast<int>(blockIdx.x);
  const int64_t tile = int64_t{blockIdx.y} * tiles.groups + group;
  const int64_t first = int64_t{blockIdx.y} * kTileTokens;
  const int64_t flagged = first + threadIdx.x;
  const bool bursts =
      threadIdx.x < kTileTokens && flagged < counts.rows && counts.bursts(flagged, group);
  if (__syncthreads_or(bursts ? 1 : 0) == 0) {
    if (threadIdx.x == 0) tiles.digit_index[tile] = -1;
    return;
  }
  if (threadIdx.x == 0) slot = atomicAdd(tiles.digits_used, 1);
  __syncthreads();
  const bool have_room = slot < tiles.digits_capacity;
  if (threadIdx.x == 0) tiles.digit_index[tile] = have_room ? 4 * slot + 1 : -1;
  signed char* digit_tiles = tiles.digits + int64_t{have_room ? slot : 0} * 2 * kCountBytes;
  for (int index = static_cast<int>(threadIdx.x); index < kPiecesPerTile; index += kThreads) {
    Piece digits[2];
    split_piece(counts, tiles, first + index / kPieces, group * kFlagGroup + index % kPieces * 16,
                have_room, digits);
    if (!have_room) continue;
    const int place = cuda::swizzled(index / kPieces, index % kPieces);
    digits[0].store(digit_tiles + place);
    digits[1].store(digit_tiles + kCountBytes + place);
  }
}

// Cores in rows that can be read 16 bytes at a time, with zeros behind the last channel.
void align_core(Context& context, const DeviceCounts& counts, CountTiles& tiles) {
  const bool aligned = reinterpret_cast<uintptr_t>(counts.core) % 16 == 0 &&
                       counts.core_stride % 16 == 0 && counts.channels % 16 == 0;
  tiles.core = counts.core;
  tiles.core_stride = counts.core_stride;
  if (aligned) return;
  tiles.core_stride = cuda::ceil_divide(counts.channels, 16) * 16;
  auto* copy = context.arena().allocate<signed char>(counts.rows * tiles.core_stride);
  context.stream().fill_zero(copy, counts.rows * tiles.core_stride);
  cuda::check_cuda(
      cudaMemcpy2DAsync(copy, static_cast<size_t>(tiles.core_stride), counts.core,
                        static_cast<size_t>(counts.core_stride),
                        static_cast<size_t>(counts.channels), static_cast<size_t>(counts.rows),
                        cudaMemcpyDeviceToDevice, cuda::stream_of(context)),
      "spike_matmul: aligning counts");
  tiles.core = copy;
}

}  // namespace

CountTiles tile_counts(Context& context, const DeviceCounts& counts) {
  // A quarter of the tiles get digits, or a few of few.
  constexpr int64_t kFewTiles = 64;
  Arena& arena = context.arena();
  CountTiles tiles{};
  tiles.tiles = static_cast<int>(cuda::ceil_divide(counts.rows, kTileTokens));
  tiles.groups = counts.groups;
  const int64_t count = int64_t{tiles.tiles} * tiles.groups;
  tiles.digits_capacity = static_cast<int>(std::min(count, count / 4 + kFewTiles));
  align_core(context, counts, tiles);
  tiles.digits = arena.allocate<signed char>(int64_t{tiles.digits_capacity} * 2 * kCountBytes);
  tiles.digit_index = arena.allocate<int32_t>(count);
  tiles.far_tokens = arena.allocate<int32_t>(counts.rows);
  // Counters and flags are cleared together.
  int32_t* cleared = arena.allocate<int32_t>(2 + counts.rows);
  context.stream().fill_zero(cleared, (2 + counts.rows) * 4);
  tiles.digits_used = cleared;
  tiles.far_count = cleared + 1;
  tiles.far_flags = cleared + 2;
  const dim3 blocks(static_cast<unsigned>(tiles.groups), static_cast<unsigned>(tiles.tiles));
  digits_kernel<<<blocks, kThreads, 0, cuda::stream_of(context)>>>(counts, tiles);
  cuda::check_launch("spike_matmul: digits of counts");
  return tiles;
}

}  // namespace spb::spike
