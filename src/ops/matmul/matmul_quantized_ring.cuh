// What a warp of matmul_quantized_rows_cuda.cu multiplies, and how it comes into shared memory.
//
// A warp has the same tiles of every band. It goes through them piece by piece of x: with one piece
// the bands of a group are multiplied, then with the next. The tiles of a piece and band arrive in
// slots, in that order.
#pragma once

#include "core/cuda/bulk_copy.cuh"
#include "core/cuda/mma.cuh"
#include "ops/matmul/matmul_few_rows.cuh"
#include "ops/matmul/matmul_quantized_tiles.cuh"

namespace spb::ops::quantized {

using cuda::Barrier;
using cuda::kWarpSize;
using AnyTargets = Targets<std::byte>;  // the dtype of y is known at run time

inline constexpr int kWarps = 8;
inline constexpr int kThreads = kWarps * kWarpSize;
inline constexpr int kParts = 3;         // bf16 that make one f32
inline constexpr int kSlotBytes = 5120;  // at most

// Tiles that arrive together.
__host__ __device__ constexpr int slot_tiles(DType dtype) { return kSlotBytes / tile_bytes(dtype); }
// Of a warp.
__host__ __device__ constexpr int ring_bytes(DType dtype, int stages) {
  return stages * slot_tiles(dtype) * tile_bytes(dtype);
}

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ inline int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// x as rows of bf16, or of f32 that become kParts rows.
struct Inputs {
  const std::byte* data;
  int64_t stride;  // bytes
  int64_t columns;
  int rows;
  bool in_f32;
  int piece_tiles;  // of columns in shared memory at a time, for each warp
  int buffers;      // of such pieces

  __host__ __device__ int staged_rows() const { return rows * (in_f32 ? kParts : 1); }
  // Bytes between staged rows: two rows that are read at once lie in different banks.
  __host__ __device__ static constexpr int pitch_of(int tiles) {
    return tiles * kTileColumns * 2 + 64;
  }
  __host__ __device__ int buffer_bytes() const { return staged_rows() * pitch_of(piece_tiles); }
};

// The tiles of a band that are a warp's, in pieces of about the same size.
struct Part {
  int first;
  int end;
  int pieces;
  int piece_tiles;

  __device__ explicit Part(const Inputs& x) {
    const auto all = static_cast<int>(tiles_of(x.columns));
    first = all * warp_of_thread() / kWarps;
    end = all * (warp_of_thread() + 1) / kWarps;
    pieces = max(1, (end - first + x.piece_tiles - 1) / x.piece_tiles);
    piece_tiles = (end - first + pieces - 1) / pieces;
  }
  __device__ int begin_of(int piece) const { return min(first + piece * piece_tiles, end); }
};

// A block's bands, those of all targets one after another, in groups of about the same size.
struct Groups {
  int first;
  int bands;
  int count;

  __device__ Groups(int64_t all, int most)
      : first(static_cast<int>(all * blockIdx.x / gridDim.x)),
        bands(static_cast<int>(all * (blockIdx.x + 1) / gridDim.x) - first),
        count((bands + most - 1) / most) {}

  __device__ int begin_of(int group) const { return first + bands * group / count; }
};

__device__ inline int target_of(const AnyTargets& targets, int band) {
  int t = 0;
  while (band >= targets.first_warp[t + 1]) ++t;
  return t;
}

// The slots of a warp, kStages of them.
template <DType kDtype, int kStages>
class Ring {
 public:
  // Asks for the first tiles.
  __device__ Ring(const AnyTargets& targets, const Groups& groups, const Part& part,
                  std::byte* memory, Barrier* barriers)
      : targets_(targets), groups_(groups), part_(part), memory_(memory), barriers_(barriers) {
    if (part.first == part.end) group_ = groups.count;
    begin_group();
    for (int s = 0; s < kStages; ++s) ask(s);
  }

  // The next tiles.
  __device__ const std::byte* wait() {
    cuda::wait_for(&barriers_[stage_], parity_);
    return slot(stage_);
  }
  // They were read.
  __device__ void free() {
    __syncwarp();
    ask(stage_);
    if (++stage_ < kStages) return;
    stage_ = 0;
    parity_ ^= 1;
  }

 private:
  static constexpr int kTileBytes = tile_bytes(kDtype);
  static constexpr int kSlotTiles = slot_tiles(kDtype);

  __device__ std::byte* slot(int stage) const { return memory_ + stage * kSlotTiles * kTileBytes; }
  __device__ void begin_group() {
    if (group_ >= groups_.count) return;
    band_ = groups_.begin_of(group_);
    tile_ = part_.begin_of(piece_);
  }
  __device__ void advance(int tiles) {
    tile_ += tiles;
    if (tile_ < part_.begin_of(piece_ + 1)) return;
    tile_ = part_.begin_of(piece_);
    if (++band_ < groups_.begin_of(group_ + 1)) return;
    if (++piece_ == part_.pieces) {
      piece_ = 0;
      ++group_;
    }
    begin_group();
  }

  __device__ void ask(int stage) {
    if (group_ >= groups_.count) return;
    const int tiles = min(kSlotTiles, part_.begin_of(piece_ + 1) - tile_);
    if (lane_of_thread() == 0) {
      const int t = target_of(targets_, band_);
      const int64_t tile =
          (band_ - targets_.first_warp[t]) * tiles_of(targets_.weights[0].columns) + tile_;
      cuda::expect_bytes(&barriers_[stage], tiles * kTileBytes);
      cuda::copy_bulk(slot(stage), targets_.weights[t].codes + tile * kTileBytes,
                      tiles * kTileBytes, &barriers_[stage]);
    }
    advance(tiles);
  }

  const AnyTargets& targets_;
  const Groups& groups_;
  const Part& part_;
  std::byte* memory_;
  Barrier* barriers_;
  // What is multiplied next.
  int stage_ = 0;
  int parity_ = 0;
  // What is asked for next.
  int group_ = 0;
  int piece_ = 0;
  int band_ = 0;
  int tile_ = 0;
};

// Eight f32 as bf16, whose errors stay in `values`.
__device__ inline uint4 take_bf16(float (&values)[kUnit]) {
  uint32_t words[kUnit / 2];
#pragma unroll
  for (int i = 0; i < kUnit / 2; ++i) {
    words[i] = cuda::pack_bf16(values[2 * i], values[2 * i + 1]);
    const float2 taken = cuda::unpack_bf16(words[i]);
    values[2 * i] -= taken.x;
    values[2 * i + 1] -= taken.y;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The pieces of x of a warp, again for every group; rows of bf16, zeros beyond the last column.
// Pieces of bf16 are copied while the one before is multiplied.
class Pieces {
 public:
  // Asks for the first one.
  __device__ Pieces(const Inputs& x, const Part& part, int groups, std::byte* memory,
                    Barrier* barriers)
      : x_(x),
        part_(part),
        memory_(memory),
        barriers_(barriers),
        count_(part.pieces == 1 ? 1 : part.pieces * groups) {
    if (!x.in_f32) copy(0);
  }

  // The next one.
  __device__ const std::byte* next() {
    if (taken_ == count_) return memory_;  // the only one
    __syncwarp();                          // the one before was read
    if (x_.in_f32) {
      split(taken_++ % part_.pieces);
      return memory_;
    }
    if (x_.buffers > 1) {
      copy(taken_ + 1);
    } else if (taken_ > 0) {
      copy(taken_);
    }
    if (part_.end > part_.first) cuda::wait_for(&barriers_[taken_ % 2], taken_ / 2 % 2);
    return buffer(taken_++);
  }

 private:
  __device__ std::byte* buffer(int index) const {
    return memory_ + index % x_.buffers * x_.buffer_bytes();
  }

  // Piece `index` of all groups; a lane for each row.
  __device__ void copy(int index) {
    if (index >= count_) return;
    const int piece = index % part_.pieces;
    const int64_t first = int64_t{part_.begin_of(piece)} * kTileColumns;
    const int64_t end = int64_t{part_.begin_of(piece + 1)} * kTileColumns;
    const auto bytes = static_cast<int>(min(end, x_.columns) - first) * 2;
    if (bytes <= 0) return;
    Barrier* barrier = &barriers_[index % 2];
    const int pitch = Inputs::pitch_of(x_.piece_tiles);
    const int lane = lane_of_thread();
    if (lane == 0) cuda::expect_bytes(barrier, bytes * x_.rows);
    __syncwarp();
    if (lane >= x_.rows) return;
    std::byte* to = buffer(index) + lane * pitch;
    cuda::copy_bulk(to, x_.data + lane * x_.stride + first * 2, bytes, barrier);
    for (int i = bytes; i < (end - first) * 2; i += 16) {
      *reinterpret_cast<uint4*>(to + i) = uint4{};
    }
  }

  __device__ void split(int piece) {
    const int begin = part_.begin_of(piece);
    const int units = (part_.begin_of(piece + 1) - begin) * (kTileColumns / kUnit);
    const int pitch = Inputs::pitch_of(x_.piece_tiles);
#pragma unroll 2
    for (int i = lane_of_thread(); i < units * x_.rows; i += kWarpSize) {
      const int row = i / units;
      const int unit = i - row * units;
      const int64_t column = int64_t{begin} * kTileColumns + unit * kUnit;
      float values[kUnit] = {};
      if (column < x_.columns) {
        const auto* from = reinterpret_cast<const float4*>(x_.data + row * x_.stride + column * 4);
        *reinterpret_cast<float4*>(values) = from[0];
        *reinterpret_cast<float4*>(values + 4) = from[1];
      }
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        reinterpret_cast<uint4*>(memory_ + (p * x_.rows + row) * pitch)[unit] = take_bf16(values);
      }
    }
    __syncwarp();
  }

  const Inputs& x_;
  const Part& part_;
  std::byte* memory_;
  Barrier* barriers_;
  int count_;
  int taken_ = 0;
};

}  // namespace spb::ops::quantized
