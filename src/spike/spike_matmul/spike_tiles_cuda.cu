// Products of tiles by single warps: for devices from sm_80 on without warpgroups.
//
// A block multiplies 192 rows of weights by 64 tokens, a part of a tile of counts; a warp 32 rows
// by 32 of the tokens. Tiles of the next product are copied while the present one is multiplied.
#include "core/cuda/wgmma.cuh"
#include "spike/spike_matmul/spike_products.cuh"

namespace spb::spike {
namespace {

constexpr int kThreads = 384;
constexpr int kPartTokens = 64;
constexpr int kParts = kTileTokens / kPartTokens;
constexpr int kPartBytes = kPartTokens * static_cast<int>(kScaleGroup);
constexpr int kWarpRows = 32;
constexpr int kWarpTokens = 32;
constexpr int kRowWarps = kTileOutputs / kWarpRows;

struct Stage {
  signed char weights[kWeightBytes];
  signed char counts[kPartBytes];
};

struct Problem {
  DeviceTargets targets;  // pieces are tiles of weights
  CountTiles tiles;
  const float* thresholds;
  int64_t tokens;
  int channels;  // rounded up to a multiple of 16
};

// One tile of each side, and where its sum stands.
struct Step {
  int group;
  int weights;  // 0 core, 1 low digits, 2 high digits
  int counts;
  bool shift;  // first move the sum up by 8 bits
  bool last;   // of the group
};

// Walks the products of all groups of a piece.
class Steps {
 public:
  __device__ Steps(const int32_t* weight_index, const int32_t* count_index, int groups)
      : weight_index_(weight_index), count_index_(count_index), groups_(groups) {
    enter();
  }
  __device__ bool more() const { return step_.group < groups_; }
  __device__ const Step& now() const { return step_; }
  __device__ int32_t weight_entry() const {
    return weight_index_ == nullptr ? -1 : weight_index_[step_.group];
  }
  __device__ int32_t count_entry() const { return count_index_[step_.group]; }

  __device__ void next() {
    if (step_.last) {
      ++step_.group;
      enter();
      return;
    }
    const int level = level_now();
    advance();
    step_.shift = level_now() < level;
    mark_last();
  }

 private:
  __device__ int level_now() const { return product_level(step_.weights, step_.counts); }
  __device__ void enter() {
    if (!more()) return;
    weight_tiles_ = digit_tiles(weight_entry());
    count_tiles_ = digit_tiles(count_entry());
    step_.weights = weight_tiles_ == 3 ? 2 : 0;
    step_.counts = count_tiles_ == 3 ? 2 : 0;
    step_.shift = false;
    mark_last();
  }
  // To the next pair of the same level, else to the first one of the level below.
  __device__ void advance() {
    int pair = step_.weights * count_tiles_ + step_.counts;
    for (int level = level_now();;) {
      if (++pair == weight_tiles_ * count_tiles_) {
        pair = 0;
        --level;
      }
      if (product_level(pair / count_tiles_, pair % count_tiles_) == level) break;
    }
    step_.weights = pair / count_tiles_;
    step_.counts = pair % count_tiles_;
  }
  // The last pair of level 0 holds the highest tiles below those of high digits.
  __device__ void mark_last() {
    step_.last = level_now() == 0 && step_.weights == min(weight_tiles_, 2) - 1 &&
                 step_.counts == min(count_tiles_, 2) - 1;
  }

  const int32_t* weight_index_;
  const int32_t* count_index_;
  int groups_;
  int weight_tiles_ = 1;
  int count_tiles_ = 1;
  Step step_{};
};

__device__ void copy_weights(Stage& stage, const signed char* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kWeightBytes / 16; i += kThreads) {
    cuda::copy_async<16>(stage.weights + i * 16, tile + i * 16, true);
  }
}

// The cores of a group from `token` on.
__device__ void copy_core(Stage& stage, const Problem& p, int64_t token, int group) {
  for (int i = static_cast<int>(threadIdx.x); i < kPartBytes / 16; i += kThreads) {
    const int64_t row = token + i / kPieces;
    const int channel = group * kFlagGroup + i % kPieces * 16;
    const bool valid = row < p.tokens && channel < p.channels;
    const signed char* from = p.tiles.core;
    if (valid) from += row * p.tiles.core_stride + channel;
    cuda::copy_async<16>(stage.counts + cuda::swizzled(i / kPieces, i % kPieces), from, valid);
  }
}

__device__ void copy_digits(Stage& stage, const signed char* part) {
  for (int i = static_cast<int>(threadIdx.x); i < kPartBytes / 16; i += kThreads) {
    cuda::copy_async<16>(stage.counts + i * 16, part + i * 16, true);
  }
}

using Products = int[2][4][4];  // [16 rows][8 tokens]
using Sums = float[2][4][4];

__device__ void multiply(const Stage& stage, int first_row, int first_token, int lane,
                         Products& products) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {  // 32 bytes each
    uint32_t w[2][4];
    uint32_t s[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row + i * 16 + lane % 16;
      cuda::load_matrices(w[i], stage.weights + cuda::swizzled(row, step * 2 + lane / 16));
      const int token = first_token + i * 16 + lane / 16 * 8 + lane % 8;
      cuda::load_matrices(s[i], stage.counts + cuda::swizzled(token, step * 2 + lane / 8 % 2));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        cuda::mma_bytes(products[i][j], w[i], s[j / 2][j % 2 * 2], s[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

__device__ void add_scaled(const float* scales, int row, Products& products, Sums& sums) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const float scale = scales[row + i * 16 + k % 4 / 2 * 8];
      float& sum = sums[i][k / 4][k % 4];
      sum = __fmaf_rn(__int2float_rn(products[i][k / 4][k % 4]), scale, sum);
    }
  }
}

__device__ void store(const Problem& p, int target, int64_t first_row, int64_t first_token,
                      int lane, const Sums& sums) {
  const DeviceOutput& out = p.targets.outputs[target];
  const DeviceWeight& w = p.targets.weights[target];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const int64_t n = first_row + i * 16 + lane / 4 + k % 4 / 2 * 8;
      const int64_t token = first_token + k / 4 * 8 + lane % 4 * 2 + k % 2;
      if (n >= w.rows || token >= p.tokens) continue;
      if (out.accumulate && is_far(p.tiles, w, token, n)) continue;
      out.store(token, n, out.result(n, p.thresholds[token], sums[i][k / 4][k % 4]));
    }
  }
}

__global__ void __launch_bounds__(kThreads) warp_tiles_kernel(const __grid_constant__ Problem p) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto* stages = reinterpret_cast<Stage*>(storage);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp % kRowWarps * kWarpRows;
  const int token = warp / kRowWarps * kWarpTokens;
  const int target = p.targets.target_of(blockIdx.x);
  const DeviceWeight& w = p.targets.weights[target];
  const int64_t weight_tile = int64_t{blockIdx.x} - p.targets.first_piece[target];
  const int64_t count_tile = blockIdx.y / kParts;
  const int part = static_cast<int>(blockIdx.y % kParts);
  const int32_t* weight_index =
      w.digit_index == nullptr ? nullptr : w.digit_index + weight_tile * w.groups;
  const int32_t* count_index = p.tiles.digit_index + count_tile * w.groups;
  const int64_t first_token = count_tile * kTileTokens + part * kPartTokens;
  const auto copy = [&](const Steps& steps, int stage) {
    if (steps.more()) {
      const Step& step = steps.now();
      const int64_t cell = weight_tile * w.groups + step.group;
      copy_weights(
          stages[stage],
          step.weights == 0
              ? w.codes + cell * kWeightBytes
              : w.digits + int64_t{digit_tile(steps.weight_entry(), step.weights)} * kWeightBytes);
      if (step.counts == 0) {
        copy_core(stages[stage], p, first_token, step.group);
      } else {
        copy_digits(stages[stage],
                    p.tiles.digits +
                        int64_t{digit_tile(steps.count_entry(), step.counts)} * kCountBytes +
                        part * kPartBytes);
      }
    }
    cuda::commit_copies();
  };
  Steps ahead(weight_index, count_index, w.groups);
  Steps steps(weight_index, count_index, w.groups);
  copy(ahead, 0);
  Products products = {};
  Sums sums = {};
  for (int stage = 0; steps.more(); stage ^= 1) {
    ahead.next();
    copy(ahead, stage ^ 1);
    cuda::wait_for_copies<1>();
    __syncthreads();
    if (steps.now().shift) {
#pragma unroll
      for (int i = 0; i < 32; ++i) products[i / 16][i / 4 % 4][i % 4] <<= 8;
    }
    multiply(stages[stage], row, token, lane, products);
    if (steps.now().last) {
      add_scaled(w.scales + (weight_tile * w.groups + steps.now().group) * kTileOutputs,
                 row + lane / 4, products, sums);
#pragma unroll
      for (int i = 0; i < 32; ++i) products[i / 16][i / 4 % 4][i % 4] = 0;
    }
    steps.next();
    __syncthreads();
  }
  store(p, target, weight_tile * kTileOutputs + row, first_token + token, lane, sums);
}

}  // namespace

void multiply_warp_tiles(Context& context, const DeviceCounts& counts, const CountTiles& tiles,
                         std::span<const SpikeMatmulTarget> targets) {
  const Problem p{
      device_targets(targets,
                     [](const DeviceWeight& w) { return cuda::ceil_divide(w.rows, kTileOutputs); }),
      tiles, counts.thresholds, counts.rows,
      static_cast<int>(cuda::ceil_divide(counts.channels, 16) * 16)};
  constexpr auto kBytes = static_cast<int>(2 * sizeof(Stage));
  cuda::allow_shared_memory(context, warp_tiles_kernel, kBytes);
  const dim3 blocks(static_cast<unsigned>(p.targets.first_piece[p.targets.count]),
                    static_cast<unsigned>(tiles.tiles * kParts));
  warp_tiles_kernel<<<blocks, kThreads, kBytes, cuda::stream_of(context)>>>(p);
  cuda::check_launch("spike_matmul");
}

}  // namespace spb::spike
