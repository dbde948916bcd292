// Few rows of x on Hopper: the copy engine keeps a ring of pieces of the weight in flight for every
// warp. The first pieces are asked for before the kernels queued earlier have ended, so that memory
// is never idle between two products. For f32, f16 and q8_0, and bf16 times f32: tensor cores take
// bf16 times bf16, and codes of 4 bits are faster without a ring, since unpacking bounds them.
#include <type_traits>

#include "core/cuda/bulk_copy.cuh"
#include "ops/matmul/matmul_few_rows.cuh"

namespace spb::ops {
namespace {

using cuda::Barrier;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kOutputs = 4;                // rows of the weight that a warp multiplies at once
constexpr int kPieceBytes = 1024;          // of the codes or floats of each of them
constexpr int kMaxStagedBytes = 90 << 10;  // of x; larger ones are read from the cache

// A piece of one row: floats, or the codes and the scales of whole blocks.
template <DType kDtype>
struct Piece {
  static constexpr bool kBlocks = kDtype == DType::kQ8_0;
  static constexpr int kColumns = kDtype == DType::kF32 ? kPieceBytes / 4
                                  : kBlocks             ? kPieceBytes
                                                        : kPieceBytes / 2;
  static constexpr int kScaleBytes = kBlocks ? kColumns / kBlock * 2 : 0;
  static constexpr int kUnits = kColumns / kUnit;
  static constexpr int kStages = kBlocks ? 3 : 4;  // in flight
  static constexpr int kSlotBytes = kOutputs * (kPieceBytes + kScaleBytes);
  static constexpr int kRingBytes = kWarps * kStages * kSlotBytes;
};

// The pieces of a warp's rows in the order in which it takes them.
template <typename Y>
class Pieces {
 public:
  __device__ explicit Pieces(const Targets<Y>& targets)
      : targets_(targets), tile_(blockIdx.x + int64_t{threadIdx.x / 32} * gridDim.x) {}

  __device__ bool more() const { return tile_ < targets_.first_warp[targets_.count]; }
  __device__ int piece() const { return piece_; }
  __device__ int target() const {
    int t = 0;
    while (tile_ >= targets_.first_warp[t + 1]) ++t;
    return t;
  }
  __device__ int64_t first_row(int target) const {
    return (tile_ - targets_.first_warp[target]) * kOutputs;
  }
  // To the next; true at the end of the rows.
  __device__ bool advance(int pieces) {
    if (++piece_ < pieces) return false;
    piece_ = 0;
    tile_ += int64_t{kWarps} * gridDim.x;
    return true;
  }

 private:
  const Targets<Y>& targets_;
  int64_t tile_;
  int piece_ = 0;
};

// Asks for a piece of kOutputs rows, a lane for the codes or floats of each and one for its scales.
template <DType kDtype, typename Y>
__device__ void fetch(const Targets<Y>& targets, const Pieces<Y>& at, std::byte* slot,
                      Barrier* barrier) {
  using P = Piece<kDtype>;
  const auto lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int t = at.target();
  const Planes& w = targets.weights[t];
  const int64_t first = int64_t{at.piece()} * P::kColumns;
  const auto columns = static_cast<int>(min(int64_t{P::kColumns}, w.columns - first));
  const int bytes = columns * kPieceBytes / P::kColumns;
  const int scale_bytes = P::kBlocks ? columns / kBlock * 2 : 0;
  if (lane == 0) cuda::expect_bytes(barrier, (bytes + scale_bytes) * kOutputs);
  __syncwarp();
  const int64_t row = min(at.first_row(t) + lane % kOutputs, w.rows - 1);
  if (lane < kOutputs) {
    const int64_t row_bytes = code_bytes_per_row(kDtype, w.columns);
    cuda::copy_bulk(slot + lane * kPieceBytes,
                    w.codes + row * row_bytes + int64_t{at.piece()} * kPieceBytes, bytes, barrier);
  } else if (P::kBlocks && lane < 2 * kOutputs) {
    const __half* scales = w.scales + (row * w.columns + first) / kBlock;
    cuda::copy_bulk(slot + kOutputs * kPieceBytes + lane % kOutputs * P::kScaleBytes, scales,
                    scale_bytes, barrier);
  }
}

// x into shared memory, rows one after another.
template <typename T>
__device__ Rows<const T> stage(const Rows<const T>& x, int rows, int64_t columns, T* to) {
  constexpr int kPack = cuda::kPackSize<T>;
  const int64_t packs = columns / kPack;
  for (int64_t i = threadIdx.x; i < rows * packs; i += kThreads) {
    const int64_t column = i % packs * kPack;
    Pack<T, kPack>::load(x.row(i / packs) + column).store(to + i / packs * columns + column);
  }
  __syncthreads();
  return {to, columns};
}

// The first `rows` of up to kRows rows of x; the others repeat the last one and are not written.
template <DType kDtype, int kRows, typename T, typename Y>
__global__ void __launch_bounds__(kThreads, 1)
    streamed_kernel(const __grid_constant__ Targets<Y> targets, Rows<const T> x, int rows,
                    bool staged) {
  using P = Piece<kDtype>;
  constexpr int kStages = P::kStages;
  extern __shared__ __align__(128) std::byte storage[];
  __shared__ Barrier barriers[kWarps][kStages];
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  std::byte* ring = storage + warp * kStages * P::kSlotBytes;
  const int64_t columns = targets.weights[0].columns;
  const auto pieces = static_cast<int>((columns + P::kColumns - 1) / P::kColumns);
  cuda::let_next_begin();
  if (lane < kStages) cuda::start_barrier(&barriers[warp][lane], 1);
  cuda::publish_barriers();
  __syncwarp();
  Pieces<Y> ahead(targets);
  for (int s = 0; s < kStages && ahead.more(); ++s, ahead.advance(pieces)) {
    fetch<kDtype>(targets, ahead, ring + s * P::kSlotBytes, &barriers[warp][s]);
  }
  cuda::wait_for_earlier();
  if (staged) x = stage(x, rows, columns, reinterpret_cast<T*>(storage + P::kRingBytes));
  int stage = 0;
  int parity = 0;
  float sums[kOutputs][kRows] = {};
  for (Pieces<Y> at(targets); at.more();) {
    cuda::wait_for(&barriers[warp][stage], parity);
    const std::byte* slot = ring + stage * P::kSlotBytes;
    const Planes piece{slot, reinterpret_cast<const __half*>(slot + kOutputs * kPieceBytes),
                       kOutputs, P::kColumns};
#pragma unroll
    for (int u = lane; u < P::kUnits; u += cuda::kWarpSize) {
      const int64_t unit = int64_t{at.piece()} * P::kUnits + u;
      if (unit >= columns / kUnit) break;
      float weights[kOutputs][kUnit];
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) read_unit<kDtype>(piece, n, u, weights[n]);
      add_products(x, rows, unit, weights, sums);
    }
    __syncwarp();  // the slot is free
    if (ahead.more()) {
      fetch<kDtype>(targets, ahead, ring + stage * P::kSlotBytes, &barriers[warp][stage]);
      ahead.advance(pieces);
    }
    if (++stage == kStages) stage = 0, parity ^= 1;
    if (at.piece() + 1 == pieces) {
      const int t = at.target();
      put_sums(targets, t, at.first_row(t), rows, sums);
#pragma unroll
      for (int i = 0; i < kOutputs * kRows; ++i) sums[i / kRows][i % kRows] = 0;
    }
    at.advance(pieces);
  }
}

template <DType kDtype, int kRows, typename T, typename Y>
void launch(Context& context, const MatmulArgs& args) {
  const auto rows = static_cast<int>(args.x.shape().rows());
  const int64_t columns = args.x.shape().last();
  const int64_t x_bytes = rows * columns * static_cast<int64_t>(sizeof(T));
  const bool staged = x_bytes <= kMaxStagedBytes;
  const auto bytes = static_cast<int>(Piece<kDtype>::kRingBytes + (staged ? x_bytes : 0));
  const auto kernel = streamed_kernel<kDtype, kRows, T, Y>;
  cuda::allow_shared_memory(kernel, Piece<kDtype>::kRingBytes + kMaxStagedBytes);
  const Targets<Y> targets = targets_of<Y>(args.targets, 0, rows, kOutputs);
  const int64_t tiles = targets.first_warp[targets.count];
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(context.stream().multiprocessors(), tiles));
  cuda::launch_early(context, "matmul", dim3(blocks), kThreads, static_cast<size_t>(bytes), kernel,
                     targets, cuda::rows_of<T>(args.x), rows, staged);
}

template <DType kDtype, typename T, typename Y>
void launch_rows(Context& context, const MatmulArgs& args) {
  const int64_t rows = args.x.shape().rows();
  if (rows == 1) return launch<kDtype, 1, T, Y>(context, args);
  if (rows == 2) return launch<kDtype, 2, T, Y>(context, args);
  if (rows <= 4) return launch<kDtype, 4, T, Y>(context, args);
  static_assert(kMaxFewRows == 8);
  launch<kDtype, 8, T, Y>(context, args);
}

}  // namespace

bool streams(Context& context, const MatmulArgs& args) {
  // The copy engine moves multiples of 16 bytes: of blocks the scales of a row.
  const MatmulWeight& weight = *args.targets[0].weight;
  const DType dtype = weight.dtype();
  const bool whole = dtype != DType::kQ8_0 || weight.columns() % (kBlock * 8) == 0;
  const bool taken = is_float(dtype) || dtype == DType::kQ8_0;
  const bool both_bf16 = args.x.dtype() == DType::kBF16 && dtype == DType::kBF16;
  return context.stream().is_hopper() && taken && whole && !both_bf16 &&
         cuda::packs_fit(args.x, static_cast<int>(16 / block_bytes(args.x.dtype())));
}

void matmul_streamed(Context& context, const MatmulArgs& args) {
  cuda::with_activation(args.x.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<DType kDtype>() {
      constexpr bool kBothBf16 = kDtype == DType::kBF16 && !std::is_same_v<T, float>;
      constexpr bool kFourBits = kDtype == DType::kQ4_0 || kDtype == DType::kQ4_1;
      if constexpr (kBothBf16 || kFourBits) {
        fail(ErrorKind::kUsage, "matmul: expected formats that are streamed");
      } else if (args.targets[0].y.dtype() == args.x.dtype()) {
        launch_rows<kDtype, T, T>(context, args);
      } else {
        launch_rows<kDtype, T, float>(context, args);
      }
    };
    cuda::with_row_format(args.targets[0].weight->dtype(), run);
  });
}

}  // namespace spb::ops
