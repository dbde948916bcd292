// Tiles of counts for the tensor cores.
#include <algorithm>

#include "core/cuda/pack.cuh"
#include "core/cuda/wgmma.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

constexpr int kThreads = 256;
constexpr int kPiecesPerTile = kTileTokens * kPieces;
constexpr int kPiecesPerThread = kPiecesPerTile / kThreads;
static_assert(kPiecesPerTile % kThreads == 0);

using Piece = cuda::Pack<signed char, 16>;

// 16 channels of a token, 0 where there is none.
template <bool kAligned>
__device__ Piece read_piece(const DeviceCounts& counts, int64_t token, int channel) {
  Piece piece{};
  if (token >= counts.rows || channel >= counts.channels) return piece;
  const signed char* from = counts.core + token * counts.core_stride + channel;
  if constexpr (kAligned) {
    return Piece::load(from);
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (channel + i < counts.channels) piece.at[i] = from[i];
    }
    return piece;
  }
}

__device__ void mark_far(const CountTiles& tiles, int64_t token) {
  if (atomicExch(&tiles.far_flags[token], 1) != 0) return;
  tiles.far_tokens[atomicAdd(tiles.far_count, 1)] = static_cast<int32_t>(token);
}

// Excess of a piece as digits. What digits do not hold is left out and its token marked.
__device__ void split_piece(const DeviceCounts& counts, const CountTiles& tiles, int64_t token,
                            int channel, const Piece& core, bool have_room, Piece (&digits)[2]) {
  for (int i = 0; i < 16; ++i) {
    digits[0].at[i] = 0;
    digits[1].at[i] = 0;
    if (token >= counts.rows || channel + i >= counts.channels) continue;
    const int excess = counts.excess(token, channel + i, core.at[i]);
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

// A block makes one tile.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(const DeviceCounts counts, const CountTiles tiles) {
  __shared__ int slot;
  const int group = static_cast<int>(blockIdx.x);
  const int64_t tile = int64_t{blockIdx.y} * tiles.groups + group;
  const int64_t first = int64_t{blockIdx.y} * kTileTokens;
  signed char* core_tile = tiles.core + tile * kCountBytes;
  Piece pieces[kPiecesPerThread];
#pragma unroll
  for (int i = 0; i < kPiecesPerThread; ++i) {
    const int index = static_cast<int>(threadIdx.x) + i * kThreads;
    pieces[i] = read_piece<kAligned>(counts, first + index / kPieces,
                                     group * kFlagGroup + index % kPieces * 16);
  }
#pragma unroll
  for (int i = 0; i < kPiecesPerThread; ++i) {
    const int index = static_cast<int>(threadIdx.x) + i * kThreads;
    pieces[i].store(core_tile + cuda::swizzled(index / kPieces, index % kPieces));
  }
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
#pragma unroll
  for (int i = 0; i < kPiecesPerThread; ++i) {
    const int index = static_cast<int>(threadIdx.x) + i * kThreads;
    Piece digits[2];
    split_piece(counts, tiles, first + index / kPieces, group * kFlagGroup + index % kPieces * 16,
                pieces[i], have_room, digits);
    if (!have_room) continue;
    const int place = cuda::swizzled(index / kPieces, index % kPieces);
    digits[0].store(digit_tiles + place);
    digits[1].store(digit_tiles + kCountBytes + place);
  }
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
  tiles.core = arena.allocate<signed char>(count * kCountBytes);
  tiles.digits = arena.allocate<signed char>(int64_t{tiles.digits_capacity} * 2 * kCountBytes);
  tiles.digit_index = arena.allocate<int32_t>(count);
  tiles.far_tokens = arena.allocate<int32_t>(counts.rows);
  // Counters and flags are cleared together.
  int32_t* cleared = arena.allocate<int32_t>(2 + counts.rows);
  context.stream().fill_zero(cleared, (2 + counts.rows) * 4);
  tiles.digits_used = cleared;
  tiles.far_count = cleared + 1;
  tiles.far_flags = cleared + 2;
  const bool aligned = reinterpret_cast<uintptr_t>(counts.core) % 16 == 0 &&
                       counts.core_stride % 16 == 0 && counts.channels % 16 == 0;
  const auto kernel = aligned ? tile_kernel<true> : tile_kernel<false>;
  const dim3 blocks(static_cast<unsigned>(tiles.groups), static_cast<unsigned>(tiles.tiles));
  kernel<<<blocks, kThreads, 0, cuda::stream_of(context)>>>(counts, tiles);
  cuda::check_launch("spike_matmul: tiles of counts");
  return tiles;
}

}  // namespace spb::spike
