// Few rows of x times weights in blocks on Hopper, with tensor cores. A weight is read once; 1 to 8
// rows of x in bf16 take the same products, 9 to 16 twice as many.
//
// A block has bands of the weights, and its warps share their tiles (matmul_quantized_tiles.cuh). A
// warp goes through its tiles piece by piece: a piece of x stays in shared memory while the bands
// of a group are multiplied by it. The copy engine keeps tiles in flight for every warp; the first
// ones are asked for before the kernels queued earlier have ended. Codes become bf16, which holds
// them exactly; the sum of a block of 32 is scaled in f32.
//
// x in bf16 is taken as it is. In f32 it is the sum of three bf16, each a row of its own.
//
// The numbers are added in an order that K alone decides: along the tiles of a warp, then over the
// warps. So a row of x gives the same bits beside however many others.
#include <algorithm>

#include "ops/matmul/matmul_quantized_ring.cuh"

namespace spb::ops {
namespace {

using namespace quantized;

constexpr int kMaxRows = 16;  // of x in bf16
constexpr int kColumns = 8;   // rows of x that one product multiplies
// Of a group, and slots of a warp, with `kCount` products side by side: 16 rows of 3584 columns of
// x are one piece.
template <int kCount>
constexpr int kBands = kCount == 1 ? 5 : 3;
template <int kCount>
constexpr int kStages = kCount == 1 ? 3 : 2;
constexpr int kSumBytes = kWarpSize * static_cast<int>(sizeof(float4));
constexpr int kSharedBytes = 226 << 10;  // beside the barriers

template <int kCount>
struct Barriers {
  Barrier slots[kStages<kCount>];
  Barrier x[2];
};

// Scales of a lane's two rows in a block, and minima.
template <DType kDtype>
struct Scales {
  float2 d;
  float2 m;

  __device__ Scales(const std::byte* tile, int block) {
    const int quad = lane_of_thread() / 4;
    const auto* at = reinterpret_cast<const __half2*>(tile + tile_code_bytes(kDtype));
    if constexpr (kDtype == DType::kQ4_1) {
      const uint2 both = reinterpret_cast<const uint2*>(at)[quad * kTileBlocks + block];
      d = __half22float2(*reinterpret_cast<const __half2*>(&both.x));
      m = __half22float2(*reinterpret_cast<const __half2*>(&both.y));
    } else {
      d = __half22float2(at[quad * kTileBlocks + block]);
      m = float2{};
    }
  }
};

// A lane's codes of a block as a product's operand: words 4 i to 4 i + 3 for 16 of its columns.
template <DType kDtype>
__device__ void read_codes(const std::byte* tile, int block, uint32_t (&out)[8]) {
  const int lane = lane_of_thread();
  uint32_t low[4];
  uint32_t high[4];
  if constexpr (kDtype == DType::kQ8_0) {
    const uint4 words = reinterpret_cast<const uint4*>(tile)[block * kWarpSize + lane];
    const uint32_t rows[4] = {words.x, words.y, words.z, words.w};
    unpack_unit<kDtype>(rows, low);
    unpack_unit<kDtype>(rows + 2, high);
  } else {
    const uint2 words = reinterpret_cast<const uint2*>(tile)[lane * kTileBlocks + block];
    unpack_unit<kDtype>(&words.x, low);
    unpack_unit<kDtype>(&words.y, high);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = low[i];
    out[2 * i + 1] = high[i];
  }
}

// sums += kCodeScale times a tile times a tile of x, whose rows begin at `x`; rows from `rows` on
// repeat the last.
template <DType kDtype, int kCount>
__device__ void multiply_tile(const std::byte* tile, const std::byte* x, int rows, int pitch,
                              float (&sums)[kCount][4]) {
  const int lane = lane_of_thread();
#pragma unroll
  for (int block = 0; block < kTileBlocks; ++block) {
    uint32_t codes[8];
    read_codes<kDtype>(tile, block, codes);
    const Scales<kDtype> scales(tile, block);
    const uint32_t first[4] = {codes[0], codes[1], codes[2], codes[3]};
    const uint32_t second[4] = {codes[4], codes[5], codes[6], codes[7]};
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const int row = min(c * kColumns + lane / 4, rows - 1);
      const uint4 unit =
          reinterpret_cast<const uint4*>(x + row * pitch)[block * kTilePairs + lane % kTilePairs];
      float products[4] = {};
      cuda::mma_bf16(products, first, unit.x, unit.y);
      cuda::mma_bf16(products, second, unit.z, unit.w);
      sums[c][0] += scales.d.x * products[0];
      sums[c][1] += scales.d.x * products[1];
      sums[c][2] += scales.d.y * products[2];
      sums[c][3] += scales.d.y * products[3];
      if constexpr (kDtype == DType::kQ4_1) {
        // As large as a code of 1.
        constexpr uint32_t kOnes[4] = {0x3c803c80u, 0x3c803c80u, 0x3c803c80u, 0x3c803c80u};
        float x_sums[4] = {};
        cuda::mma_bf16(x_sums, kOnes, unit.x, unit.y);
        cuda::mma_bf16(x_sums, kOnes, unit.z, unit.w);
        sums[c][0] += scales.m.x * x_sums[0];
        sums[c][1] += scales.m.x * x_sums[1];
        sums[c][2] += scales.m.y * x_sums[2];
        sums[c][3] += scales.m.y * x_sums[3];
      }
    }
  }
}

// A band's tiles begin .. end, those of a piece of x.
template <DType kDtype, int kCount>
__device__ void multiply_piece(Ring<kDtype, kStages<kCount>>& ring, int begin, int end,
                               const std::byte* x, int rows, int pitch, float (&sums)[kCount][4]) {
  constexpr int kSlotTiles = slot_tiles(kDtype);
  constexpr int kUnroll = kCount == 1 && kDtype != DType::kQ8_0 ? 4 : 2;
  for (int done = begin; done < end; done += kSlotTiles) {
    const std::byte* slot = ring.wait();
    const int tiles = min(kSlotTiles, end - done);
    const std::byte* from = x + (done - begin) * (kTileColumns * 2);
#pragma unroll kUnroll
    for (int i = 0; i < tiles; ++i) {
      multiply_tile<kDtype>(slot + i * tile_bytes(kDtype), from + i * (kTileColumns * 2), rows,
                            pitch, sums);
    }
    ring.free();
  }
}

// The sums of all warps, of `bands` bands from `first` on.
template <int kCount>
__device__ void write_sums(const AnyTargets& targets, const Inputs& x, bool y_in_f32, int first,
                           int bands, const float* sums) {
  constexpr int kBandSums = kCount * kWarpSize * 4;
  const int outputs = bands * kTileRows;
  for (int i = static_cast<int>(threadIdx.x); i < outputs * x.rows; i += kThreads) {
    const int m = i / outputs;
    const int band = (i - m * outputs) / kTileRows;
    const int row = i % kTileRows;
    const int t = target_of(targets, first + band);
    const int64_t output = (first + band - targets.first_warp[t]) * kTileRows + row;
    if (output >= targets.weights[t].rows) continue;
    float sum = 0;
    for (int column = x.staged_rows() - x.rows + m; column >= 0; column -= x.rows) {
      const int lane = row % 8 * 4 + column % kColumns / 2;
      const float* at = sums + band * kBandSums + (column / kColumns * kWarpSize + lane) * 4 +
                        row / 8 * 2 + column % 2;
      float part = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) part += at[w * kBands<kCount> * kBandSums];
      sum += part;
    }
    sum /= kCodeScale;
    if (targets.biases[t] != nullptr) sum += targets.biases[t][output];
    std::byte* y = targets.y[t].row(m);
    if (y_in_f32) {
      put(reinterpret_cast<float*>(y) + output, sum, targets.accumulate[t]);
    } else {
      put(reinterpret_cast<__nv_bfloat16*>(y) + output, sum, targets.accumulate[t]);
    }
  }
}

// A lane's sums, kWarpSize apart.
template <int kCount>
__device__ void load_sums(const float4* from, float (&sums)[kCount][4]) {
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    *reinterpret_cast<float4*>(sums[c]) = from[c * kWarpSize];
  }
}
template <int kCount>
__device__ void store_sums(const float (&sums)[kCount][4], float4* to) {
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    to[c * kWarpSize] = *reinterpret_cast<const float4*>(sums[c]);
  }
}

// A group of `bands` bands.
template <DType kDtype, int kCount>
__device__ void multiply_group(Ring<kDtype, kStages<kCount>>& ring, Pieces& pieces,
                               const Part& part, const Inputs& x, int bands, float4* sums) {
  const int pitch = Inputs::pitch_of(x.piece_tiles);
  for (int piece = 0; piece < part.pieces; ++piece) {
    const std::byte* from = pieces.next();
    for (int band = 0; band < bands; ++band) {
      alignas(16) float lane_sums[kCount][4] = {};
      float4* own = sums + band * kCount * kWarpSize;
      if (piece > 0) load_sums(own, lane_sums);
      multiply_piece<kDtype>(ring, part.begin_of(piece), part.begin_of(piece + 1), from,
                             x.staged_rows(), pitch, lane_sums);
      store_sums(lane_sums, own);
    }
  }
}

// kCount products side by side, for 8 kCount rows of bf16.
template <DType kDtype, int kCount>
__global__ void __launch_bounds__(kThreads, 1)
    quantized_rows_kernel(const __grid_constant__ AnyTargets targets,
                          const __grid_constant__ Inputs x, bool y_in_f32) {
  extern __shared__ __align__(128) std::byte storage[];
  __shared__ Barriers<kCount> barriers[kWarps];
  const int warp = warp_of_thread();
  constexpr int kRing = ring_bytes(kDtype, kStages<kCount>);
  const Part part(x);
  const Groups groups(targets.first_warp[targets.count], kBands<kCount>);
  std::byte* all_sums = storage + kWarps * kRing;
  std::byte* staged = all_sums + kWarps * kBands<kCount> * kCount * kSumBytes;
  auto* sums = reinterpret_cast<float4*>(all_sums) + warp * kBands<kCount> * kCount * kWarpSize +
               lane_of_thread();
  cuda::let_next_begin();
  if (lane_of_thread() == 0) {
    cuda::start_barriers(barriers[warp].slots, 1);
    cuda::start_barriers(barriers[warp].x, 1);
    cuda::publish_barriers();
  }
  __syncwarp();
  Ring<kDtype, kStages<kCount>> ring(targets, groups, part, storage + warp * kRing,
                                     barriers[warp].slots);
  cuda::wait_for_earlier();
  Pieces pieces(x, part, groups.count, staged + warp * x.buffers * x.buffer_bytes(),
                barriers[warp].x);
  for (int group = 0; group < groups.count; ++group) {
    const int first = groups.begin_of(group);
    const int bands = groups.begin_of(group + 1) - first;
    multiply_group<kDtype, kCount>(ring, pieces, part, x, bands, sums);
    __syncthreads();
    write_sums<kCount>(targets, x, y_in_f32, first, bands,
                       reinterpret_cast<const float*>(all_sums));
    __syncthreads();
  }
}

// Pieces of x as large as there is room for them.
Inputs inputs_of(const ConstTensorView& x, int room) {
  Inputs inputs{x.data(),
                x.row_stride_bytes(),
                x.shape().last(),
                static_cast<int>(x.shape().rows()),
                x.dtype() == DType::kF32,
                static_cast<int>(cuda::ceil_divide(tiles_of(x.shape().last()), kWarps)),
                1};
  const auto fit = [&](int buffers) {
    const int row_bytes = room / (buffers * inputs.staged_rows());
    return (row_bytes - Inputs::pitch_of(0)) / (kTileColumns * 2);
  };
  if (inputs.buffer_bytes() > room) {
    inputs.buffers = !inputs.in_f32 && fit(2) > 1 ? 2 : 1;
    inputs.piece_tiles = fit(inputs.buffers);
  }
  return inputs;
}

template <DType kDtype, int kCount>
void launch(Context& context, const MatmulArgs& args) {
  constexpr int kFixed =  // of a warp
      ring_bytes(kDtype, kStages<kCount>) + kBands<kCount> * kCount * kSumBytes;
  constexpr int kRoom = kSharedBytes / kWarps - kFixed;
  static_assert(kRoom >= kCount * kColumns * Inputs::pitch_of(1));
  const Inputs x = inputs_of(args.x, kRoom);
  const auto kernel = quantized_rows_kernel<kDtype, kCount>;
  cuda::allow_shared_memory(context, kernel, kSharedBytes);
  const AnyTargets targets = targets_of<std::byte>(args.targets, 0, x.rows, kTileRows);
  const auto blocks = static_cast<unsigned>(
      std::min<int64_t>(context.stream().multiprocessors(), targets.first_warp[targets.count]));
  const int bytes = kWarps * (kFixed + x.buffers * x.buffer_bytes());
  cuda::launch_early(context, "matmul", dim3(blocks), kThreads, static_cast<size_t>(bytes), kernel,
                     targets, x, args.targets[0].y.dtype() == DType::kF32);
}

template <DType kDtype>
void launch_rows(Context& context, const MatmulArgs& args) {
  const int64_t rows = args.x.shape().rows() * (args.x.dtype() == DType::kF32 ? kParts : 1);
  if (rows <= kColumns) return launch<kDtype, 1>(context, args);
  if (rows <= 2 * kColumns) return launch<kDtype, 2>(context, args);
  launch<kDtype, 3>(context, args);
}

}  // namespace

bool fits_quantized_rows(const ConstTensorView& x) {
  static_assert(kMaxFewRows * kParts <= 3 * kColumns && kMaxRows <= 2 * kColumns);
  return x.shape().rows() <= (x.dtype() == DType::kF32 ? kMaxFewRows : kMaxRows);
}

void matmul_quantized_rows(Context& context, const MatmulArgs& args) {
  switch (args.targets[0].weight->dtype()) {
    case DType::kQ8_0: return launch_rows<DType::kQ8_0>(context, args);
    case DType::kQ4_0: return launch_rows<DType::kQ4_0>(context, args);
    default: return launch_rows<DType::kQ4_1>(context, args);
  }
}

}  // namespace spb::ops
