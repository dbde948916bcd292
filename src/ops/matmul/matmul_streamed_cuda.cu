// Few rows of x on Hopper: the copy engine keeps a ring of pieces of the weight in flight for every
// warp. The first pieces are asked for before the kernels queued earlier have ended, so that memory
// is never idle between two products. For weights in f32 and f16, and bf16 times f32: tensor cores
// take bf16 times bf16, and blocks.
#include <type_traits>

#include "core/cuda/bulk_copy.cuh"
#include "ops/matmul/matmul_few_rows.cuh"

namespace spb::ops {
namespace {

using cuda::Barrier;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kOutputs = 4;        // rows of the weight that a warp multiplies at once
constexpr int kPieceBytes = 1024;  // of each of them
constexpr int kStages = 4;         // in flight
constexpr int kSlotBytes = kOutputs * kPieceBytes;
constexpr int kRingBytes = kWarps * kStages * kSlotBytes;
constexpr int kMaxStagedBytes = 90 << 10;  // of x; larger ones are read from the cache

// Of a piece of one row.
template <DType kDtype>
constexpr int kColumns = kPieceBytes / (kDtype == DType::kF32 ? 4 : 2);
template <DType kDtype>
constexpr int kUnits = kColumns<kDtype> / kUnit;

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

// Asks for a piece of kOutputs rows, a lane for each.
template <DType kDtype, typename Y>
__device__ void fetch(const Targets<Y>& targets, const Pieces<Y>& at, std::byte* slot,
                      Barrier* barrier) {
  const auto lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int t = at.target();
  const Planes& w = targets.weights[t];
  const int64_t first = int64_t{at.piece()} * kPieceBytes;
  const int64_t row_bytes = code_bytes_per_row(kDtype, w.columns);
  const auto bytes = static_cast<int>(min(int64_t{kPieceBytes}, row_bytes - first));
  if (lane == 0) cuda::expect_bytes(barrier, bytes * kOutputs);
  __syncwarp();
  if (lane >= kOutputs) return;
  const int64_t row = min(at.first_row(t) + lane, w.rows - 1);
  cuda::copy_bulk(slot + lane * kPieceBytes, w.codes + row * row_bytes + first, bytes, barrier);
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
  extern __shared__ __align__(128) std::byte storage[];
  __shared__ Barrier barriers[kWarps][kStages];
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  std::byte* ring = storage + warp * kStages * kSlotBytes;
  const int64_t columns = targets.weights[0].columns;
  const auto pieces = static_cast<int>((columns + kColumns<kDtype> - 1) / kColumns<kDtype>);
  cuda::let_next_begin();
  if (lane == 0) {
    cuda::start_barriers(barriers[warp], 1);
    cuda::publish_barriers();
  }
  __syncwarp();
  Pieces<Y> ahead(targets);
  for (int s = 0; s < kStages && ahead.more(); ++s, ahead.advance(pieces)) {
    fetch<kDtype>(targets, ahead, ring + s * kSlotBytes, &barriers[warp][s]);
  }
  cuda::wait_for_earlier();
  if (staged) x = stage(x, rows, columns, reinterpret_cast<T*>(storage + kRingBytes));
  int stage = 0;
  int parity = 0;
  float sums[kOutputs][kRows] = {};
  for (Pieces<Y> at(targets); at.more();) {
    cuda::wait_for(&barriers[warp][stage], parity);
    const Planes piece{ring + stage * kSlotBytes, nullptr, kOutputs, kColumns<kDtype>};
#pragma unroll
    for (int u = lane; u < kUnits<kDtype>; u += cuda::kWarpSize) {
      const int64_t unit = int64_t{at.piece()} * kUnits<kDtype> + u;
      if (unit >= columns / kUnit) break;
      float weights[kOutputs][kUnit];
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) read_unit<kDtype>(piece, n, u, weights[n]);
      add_products(x, rows, unit, weights, sums);
    }
    __syncwarp();  // the slot is free
    if (ahead.more()) {
      fetch<kDtype>(targets, ahead, ring + stage * kSlotBytes, &barriers[warp][stage]);
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
  const auto bytes = static_cast<int>(kRingBytes + (staged ? x_bytes : 0));
  const auto kernel = streamed_kernel<kDtype, kRows, T, Y>;
  cuda::allow_shared_memory(context, kernel, kRingBytes + kMaxStagedBytes);
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
  const DType dtype = args.targets[0].weight->dtype();
  const bool both_bf16 = args.x.dtype() == DType::kBF16 && dtype == DType::kBF16;
  return context.stream().is_hopper() && is_float(dtype) && !both_bf16 &&
         cuda::packs_fit(args.x, static_cast<int>(16 / block_bytes(args.x.dtype())));
}

void matmul_streamed(Context& context, const MatmulArgs& args) {
  cuda::with_activation(args.x.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto run = [&]<DType kDtype>() {
      constexpr bool kBothBf16 = kDtype == DType::kBF16 && !std::is_same_v<T, float>;
      if constexpr (kBothBf16 || !is_float(kDtype)) {
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
