#include "core/cuda/block_rows.cuh"
#include "core/cuda/pack.cuh"
#include "core/transfer.h"
#include "ops/embedding/embedding_cuda.h"

namespace spb::ops {
namespace {

constexpr int kThreads = 256;

template <DType kDtype, typename T>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(const int32_t* ids, const std::byte* table, int64_t stride_bytes,
                     cuda::Rows<T> y, int64_t columns) {
  const std::byte* row = table + ids[blockIdx.x] * stride_bytes;
  for (int64_t c = threadIdx.x; c < columns; c += kThreads) {
    y.row(blockIdx.x)[c] = cuda::from_float<T>(cuda::row_element<kDtype>(row, c));
  }
}

}  // namespace

void embedding_cuda(Context& context, const EmbeddingArgs& args) {
  const Arena::Scope scope(context.arena());
  const int32_t* ids = args.ids_on_device ? args.ids.data() : on_device(context, args.ids);
  const int64_t columns = args.table.shape()[1];
  cuda::with_activation(args.y.dtype(), [&](auto type) {
    using T = decltype(type);
    cuda::with_row_format(args.table.dtype(), [&]<DType kDtype>() {
      embedding_kernel<kDtype, T>
          <<<static_cast<unsigned>(args.ids.size()), kThreads, 0, cuda::stream_of(context)>>>(
              ids, args.table.data(), args.table.row_stride_bytes(), cuda::rows_of<T>(args.y),
              columns);
    });
    cuda::check_launch("embedding");
  });
}

}  // namespace spb::ops
