// Many rows on Hopper: two warpgroups multiply tiles that the copy engine brings, asked by a third.
//
// One block to a multiprocessor takes every n-th tile; while one is written, the parts of the next
// are already coming. A tile is 128 rows by 256 outputs, or 256 by 128 where that wastes less.
#include <algorithm>

#include "core/cuda/reduce.cuh"
#include "core/cuda/tensor_map.cuh"
#include "core/cuda/tile_stages.cuh"
#include "ops/moe/grouped_matmul_tiles.cuh"

namespace spb::ops {
namespace {

using T = __nv_bfloat16;

constexpr int kGroupThreads = 128;
constexpr int kConsumers = 2;
constexpr int kThreads = kGroupThreads * (kConsumers + 1);
constexpr int kStages = 4;
constexpr int kStep = 64;  // columns of a stage
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
constexpr int kProducts = 2;  // of 64 rows by 128 outputs, for each consumer

template <bool kTall>
struct Sizes {
  static constexpr int kRows = kTall ? 256 : 128;
  static constexpr int kOutputs = kTall ? 128 : 256;
  static constexpr int kRowBytes = kStep * static_cast<int>(sizeof(T));
  static constexpr int kBytes = (kRows + kOutputs) * kRowBytes;
};

// Rows of x, then rows of the weight.
template <bool kTall>
struct Shared {
  unsigned char tiles[kStages][Sizes<kTall>::kBytes];
  cuda::Barrier full[kStages];
  cuda::Barrier empty[kStages];
};

struct Maps {
  CUtensorMap x;
  CUtensorMap weights;
};

using Turn = cuda::Turn<kStages>;

template <bool kTall>
__device__ void produce(Shared<kTall>& shared, const Maps& maps, const GroupedProduct<T>& p) {
  using S = Sizes<kTall>;
  TileOrder<S::kRows, S::kOutputs> order(p);
  GroupedTile tile;
  Turn turn;
  for (int64_t t = blockIdx.x; order.at(t, tile); t += gridDim.x) {
    const int row = static_cast<int>(tile.first_row);
    const int output = tile.expert * p.outputs + tile.first_output;
    for (int column = 0; column < p.columns; column += kStep) {
      unsigned char* to = shared.tiles[turn.stage];
      cuda::Barrier* full = &shared.full[turn.stage];
      if (turn.round > 0) cuda::wait_for(&shared.empty[turn.stage], (turn.round - 1) & 1);
      cuda::expect_bytes(full, S::kBytes);
      cuda::copy_tile(to, &maps.x, row, column, full);
      cuda::copy_tile(to + S::kRows * S::kRowBytes, &maps.weights, output, column, full);
      turn.next();
    }
  }
}

// Eight outputs from `first` on, as far as there are so many.
__device__ void write_eight(T* y, int first, int outputs, const uint32_t (&words)[4], bool packed) {
  if (packed) {
    *reinterpret_cast<uint4*>(y + first) = make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const auto bits = static_cast<unsigned short>(words[n / 2] >> (16 * (n % 2)));
    if (first + n < outputs) y[first + n] = __ushort_as_bfloat16(bits);
  }
}

// 64 rows by 128 outputs, the first of which are `row` and `output`.
__device__ void write(const GroupedProduct<T>& p, const float (&sums)[16][4], int64_t row,
                      int64_t end_row, int output, bool packed) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize % 4;
  const int pair = lane % 4;
#pragma unroll
  for (int part = 0; part < 8; ++part) {
    const int half = part / 4;
    const int four = part % 4;
    uint32_t words[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float* two = &sums[four * 4 + n][half * 2];
      words[n] = cuda::pack_bf16(two[0], two[1]);
    }
    cuda::gather_outputs(words, pair);
    const int64_t i = row + warp * 16 + half * 8 + lane / 4;
    const int first = output + (four * 4 + pair) * 8;
    if (i < end_row && first < p.outputs) {
      write_eight(p.y.row(i), first, p.outputs, words, packed);
    }
  }
}

// The columns of a stage.
template <bool kTall>
__device__ void multiply(const unsigned char* tiles, int group, bool add,
                         float (&sums)[kProducts][16][4]) {
  using S = Sizes<kTall>;
  constexpr int k64Rows = 64 * S::kRowBytes;
  const unsigned char* x = tiles + group * (kTall ? 2 : 1) * k64Rows;
  const unsigned char* w = tiles + S::kRows * S::kRowBytes;
  cuda::begin_products();
#pragma unroll
  for (int i = 0; i < kStep / 16 * kProducts; ++i) {
    const int offset = i / kProducts * 32;
    const int product = i % kProducts;
    const uint64_t a = cuda::describe_tile(x + (kTall ? product * k64Rows : 0) + offset, 0);
    const uint64_t b = cuda::describe_tile(w + (kTall ? 0 : product * 2 * k64Rows) + offset, 0);
    cuda::multiply_64x128(sums[product], a, b, add || offset > 0);
  }
  cuda::finish_products();
}

template <bool kTall>
__device__ void consume(Shared<kTall>& shared, const GroupedProduct<T>& p, int group, bool packed) {
  using S = Sizes<kTall>;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  TileOrder<S::kRows, S::kOutputs> order(p);
  GroupedTile tile;
  Turn turn;
  for (int64_t t = blockIdx.x; order.at(t, tile); t += gridDim.x) {
    float sums[kProducts][16][4];
    for (int column = 0; column < p.columns; column += kStep) {
      cuda::wait_for(&shared.full[turn.stage], turn.round & 1);
      multiply<kTall>(shared.tiles[turn.stage], group, column > 0, sums);
      if (lane == 0) cuda::arrive(&shared.empty[turn.stage]);
      turn.next();
    }
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
      const int64_t row = tile.first_row + (kTall ? group * 2 + product : group) * 64;
      const int output = tile.first_output + (kTall ? 0 : product * 128);
      write(p, sums[product], row, tile.end_row, output, packed);
    }
  }
}

template <bool kTall>
__global__ void __launch_bounds__(kThreads, 1)
    warpgroups_kernel(const __grid_constant__ Maps maps,
                      const __grid_constant__ GroupedProduct<T> p, bool packed) {
  extern __shared__ __align__(1024) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared<kTall>*>(storage);
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      cuda::start_barrier(&shared.full[stage], 1);
      cuda::start_barrier(&shared.empty[stage], kConsumers * kGroupThreads / cuda::kWarpSize);
    }
    cuda::publish_barriers();
  }
  __syncthreads();
  if (group == kConsumers) {
    cuda::give_registers<kProducerRegisters>();
    if (threadIdx.x % kGroupThreads < cuda::kWarpSize && cuda::is_elected()) {
      produce(shared, maps, p);
    }
  } else {
    cuda::take_registers<kConsumerRegisters>();
    consume(shared, p, group, packed);
  }
}

template <bool kTall>
void launch(Context& context, const GroupedProduct<T>& p, const T* weights) {
  using S = Sizes<kTall>;
  constexpr auto kBytes = static_cast<int>(sizeof(Shared<kTall>));
  const int64_t experts = p.last_expert - p.first_expert;
  const Maps maps{
      cuda::tensor_map(p.x.data, p.rows, p.columns, p.x.stride, S::kRows),
      cuda::tensor_map(weights, experts * p.outputs, p.columns, p.columns, S::kOutputs)};
  const bool packed = p.outputs % 8 == 0 && p.y.stride % 8 == 0 &&
                      reinterpret_cast<uintptr_t>(p.y.data) % sizeof(uint4) == 0;
  const int64_t most_tiles = (cuda::ceil_divide(p.rows, S::kRows) + std::min(p.rows, experts)) *
                             cuda::ceil_divide(p.outputs, S::kOutputs);
  cuda::allow_shared_memory(context, warpgroups_kernel<kTall>, kBytes);
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(most_tiles, context.stream().multiprocessors()));
  warpgroups_kernel<kTall><<<blocks, kThreads, kBytes, cuda::stream_of(context)>>>(maps, p, packed);
  cuda::check_launch("grouped_matmul: warpgroups");
}

}  // namespace

void grouped_matmul_warpgroups(Context& context, const GroupedProduct<T>& product,
                               const T* weights) {
  // Rows of an expert come in any number, outputs always in the same: the tall tile is for those
  // that would leave half of a wide one empty, where experts have rows enough for it.
  constexpr int64_t kManyRows = 512;
  const int64_t experts = product.last_expert - product.first_expert;
  const int rest = product.outputs % Sizes<false>::kOutputs;
  const bool tall = rest > 0 && rest <= Sizes<true>::kOutputs && product.outputs < 4096 &&
                    product.rows >= kManyRows * experts;
  tall ? launch<true>(context, product, weights) : launch<false>(context, product, weights);
}

}  // namespace spb::ops
