// gated_matmul on Hopper: two blocks of a cluster share the tiles of both weights. Each brings the
// rows of x that are its own and one of the weights for both; two warpgroups of each multiply 64
// rows by 128 outputs of the gate and the same of up, and write what they make together.
#include <algorithm>

#include "core/cuda/bulk_copy.cuh"
#include "core/cuda/pack.cuh"
#include "core/cuda/tensor_map.cuh"
#include "core/cuda/tile_stages.cuh"
#include "ops/matmul/gated_matmul_cuda.h"
#include "ops/matmul/matmul_weight.h"
#include "ops/swiglu/swiglu.cuh"

namespace spb::ops {
namespace {

using T = __nv_bfloat16;

constexpr int kGroupThreads = 128;
constexpr int kConsumers = 2;
constexpr int kThreads = kGroupThreads * (kConsumers + 1);
constexpr int kCluster = 2;
constexpr int kStages = 4;
constexpr int kStep = 64;  // columns of a stage
constexpr int kRows = 128;
constexpr int kOutputs = 128;  // of each weight
constexpr int kConsumerRows = kRows / kConsumers;
constexpr int kTileBytes = 128 * kStep * static_cast<int>(sizeof(T));
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
constexpr uint16_t kBoth = 3;  // blocks of the cluster

struct Shared {
  unsigned char x[kStages][kTileBytes];
  unsigned char weights[kStages][2][kTileBytes];              // gate, up
  unsigned char results[kConsumers][2][kConsumerRows * 128];  // in tiles of 64 outputs
  cuda::Barrier full[kStages];
  cuda::Barrier empty[kStages];
};

struct Problem {
  CUtensorMap x;
  CUtensorMap weights[2];
  CUtensorMap y;
  int rows;
  int outputs;
  int columns;
};

using Turn = cuda::Turn<kStages>;

// The tiles of a cluster. Bands of rows that fit into the cache pass all outputs before the next
// band begins.
struct Order {
  static constexpr int kBand = 8;  // row tiles of a cluster

  int row_tiles;
  int output_tiles;

  __device__ explicit Order(const Problem& p)
      : row_tiles((p.rows + kRows * kCluster - 1) / (kRows * kCluster)),
        output_tiles((p.outputs + kOutputs - 1) / kOutputs) {}
  __device__ int count() const { return row_tiles * output_tiles; }
  // First row of the cluster, and first output.
  __device__ int2 at(int index) const {
    const int band = index / (kBand * output_tiles);
    const int inside = index - band * kBand * output_tiles;
    const int tall = min(row_tiles - band * kBand, kBand);
    return {(band * kBand + inside % tall) * kRows * kCluster, inside / tall * kOutputs};
  }
};

__device__ void produce(Shared& shared, const Problem& p, int rank) {
  const Order order(p);
  Turn turn;
  for (int t = static_cast<int>(blockIdx.x) / kCluster; t < order.count();
       t += static_cast<int>(gridDim.x) / kCluster) {
    const int2 tile = order.at(t);
    for (int column = 0; column < p.columns; column += kStep) {
      cuda::Barrier* full = &shared.full[turn.stage];
      if (turn.round > 0) cuda::wait_for(&shared.empty[turn.stage], (turn.round - 1) & 1);
      cuda::expect_bytes(full, 3 * kTileBytes);
      cuda::copy_tile(shared.x[turn.stage], &p.x, tile.x + rank * kRows, column, full);
      cuda::copy_tile_to(kBoth, shared.weights[turn.stage][rank], &p.weights[rank], tile.y, column,
                         full);
      turn.next();
    }
  }
}

using Sums = float[2][16][4];  // gate, up: 64 rows by 128 outputs

// The results of a warpgroup, by way of shared memory, from where the copy engine takes them while
// the next tile is multiplied.
__device__ void write(Shared& shared, const Problem& p, const Sums& sums, int group, int first_row,
                      int first_output) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int lane = thread % cuda::kWarpSize;
  const int warp = thread / cuda::kWarpSize;
  auto& results = shared.results[group];
  if (thread == 0) cuda::wait_for_stores();  // of the tile before
  cuda::meet_group(1 + group);
#pragma unroll
  for (int four = 0; four < 4; ++four) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t words[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float* gate = &sums[0][four * 4 + n][half * 2];
        const float* up = &sums[1][four * 4 + n][half * 2];
        words[n] = cuda::pack_bf16(activate<T>(gate[0]) * up[0], activate<T>(gate[1]) * up[1]);
      }
      const int row = warp * 16 + half * 8 + lane % 8;
      cuda::store_matrices(results[four / 2] + cuda::swizzled(row, four % 2 * 4 + lane / 8), words);
    }
  }
  cuda::publish_writes();
  cuda::meet_group(1 + group);
  if (thread != 0) return;
  for (int side = 0; side < 2; ++side) {
    cuda::store_tile(&p.y, first_row, first_output + side * 64, results[side]);
  }
}

// A stage is free when the products that read it have ended, in both blocks.
__device__ void release(Shared& shared, int stage) {
  if (threadIdx.x % cuda::kWarpSize >= kCluster) return;
  cuda::arrive_at(&shared.empty[stage], static_cast<int>(threadIdx.x % cuda::kWarpSize));
}

__device__ void multiply(const Shared& shared, int stage, int group, bool accumulate, Sums& sums) {
  const unsigned char* x = shared.x[stage] + group * (kTileBytes / 2);
  cuda::begin_products();
#pragma unroll
  for (int part = 0; part < kStep / 16; ++part) {
    const uint64_t a = cuda::describe_tile(x + part * 32, 0);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint64_t b = cuda::describe_tile(shared.weights[stage][side] + part * 32, 0);
      cuda::multiply_64x128(sums[side], a, b, accumulate || part > 0);
    }
  }
  cuda::commit_products();
}

__device__ void consume(Shared& shared, const Problem& p, int rank, int group) {
  const Order order(p);
  Turn turn;
  for (int t = static_cast<int>(blockIdx.x) / kCluster; t < order.count();
       t += static_cast<int>(gridDim.x) / kCluster) {
    const int2 tile = order.at(t);
    Sums sums;
    int before = 0;
    for (int column = 0; column < p.columns; column += kStep) {
      cuda::wait_for(&shared.full[turn.stage], turn.round & 1);
      multiply(shared, turn.stage, group, column > 0, sums);
      if (column > 0) {
        cuda::wait_for_products<1>();
        release(shared, before);
      }
      before = turn.stage;
      turn.next();
    }
    cuda::wait_for_products<0>();
    release(shared, before);
    write(shared, p, sums, group, tile.x + rank * kRows + group * kConsumerRows, tile.y);
  }
  cuda::wait_for_stores();
}

// Launched in clusters of kCluster blocks.
__global__ void __launch_bounds__(kThreads, 1) gated_kernel(const __grid_constant__ Problem p) {
  extern __shared__ __align__(1024) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared*>(storage);
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int rank = static_cast<int>(blockIdx.x) % kCluster;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      cuda::start_barrier(&shared.full[stage], 1);
      cuda::start_barrier(&shared.empty[stage],
                          kCluster * kConsumers * kGroupThreads / cuda::kWarpSize);
    }
    cuda::publish_barriers();
  }
  __syncthreads();
  cuda::meet_cluster();
  if (group == kConsumers) {
    cuda::give_registers<kProducerRegisters>();
    if (threadIdx.x % kGroupThreads < cuda::kWarpSize && cuda::is_elected()) {
      produce(shared, p, rank);
    }
  } else {
    cuda::take_registers<kConsumerRegisters>();
    consume(shared, p, rank, group);
  }
  __syncwarp();
  cuda::meet_cluster();  // the other block may still write here
}

const T* weights_of(const MatmulWeight& weight) {
  return reinterpret_cast<const T*>(weight.impl().owned.data());
}

}  // namespace

bool gated_matmul_fuses(Context& context, const GatedMatmulArgs& args) {
  constexpr int64_t kMinRows = 512;
  constexpr int64_t kMaxSize = int64_t{1} << 30;
  if (!context.device().is_cuda() || !context.stream().is_hopper()) return false;
  return args.x.dtype() == DType::kBF16 && args.gate->dtype() == DType::kBF16 &&
         args.up->dtype() == DType::kBF16 && args.x.shape()[0] >= kMinRows &&
         args.x.shape()[0] < kMaxSize && args.gate->rows() < kMaxSize &&
         args.gate->rows() % 8 == 0 && cuda::packs_fit(args.x, 8) && cuda::packs_fit(args.y, 8);
}

void gated_matmul_fused(Context& context, const GatedMatmulArgs& args) {
  const int64_t rows = args.x.shape()[0];
  const int64_t columns = args.x.shape()[1];
  const int64_t outputs = args.gate->rows();
  const auto x = cuda::rows_of<T>(args.x);
  const auto y = cuda::rows_of<T>(args.y);
  const Problem p{cuda::tensor_map(x.data, rows, columns, x.stride, kRows),
                  {cuda::tensor_map(weights_of(*args.gate), outputs, columns, columns, kOutputs),
                   cuda::tensor_map(weights_of(*args.up), outputs, columns, columns, kOutputs)},
                  cuda::tensor_map(y.data, rows, outputs, y.stride, kConsumerRows),
                  static_cast<int>(rows),
                  static_cast<int>(outputs),
                  static_cast<int>(columns)};
  constexpr auto kBytes = static_cast<int>(sizeof(Shared));
  cuda::allow_shared_memory(context, gated_kernel, kBytes);
  const int64_t blocks = context.stream().multiprocessors() / kCluster * kCluster;
  cuda::launch_clusters(context, "gated_matmul", blocks, kCluster, kThreads, kBytes, gated_kernel,
                        p);
}

}  // namespace spb::ops
