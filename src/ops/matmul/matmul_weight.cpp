#include "ops/matmul/matmul_weight.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "ops/matmul/matmul_cuda.h"

namespace spb::ops {
namespace {

bool aligned_for(const ConstTensorView& weight) {
  if (!is_plain(weight.dtype())) return true;  // blocks are read bytewise
  const auto element = static_cast<uintptr_t>(block_bytes(weight.dtype()));
  return reinterpret_cast<uintptr_t>(weight.data()) % element == 0 &&
         static_cast<uintptr_t>(weight.row_stride_bytes()) % element == 0;
}

void copy_rows(Context& context, ConstTensorView weight, MatmulWeight::Impl& impl) {
  const int64_t bytes = weight.row_bytes_used();
  impl.owned = Buffer(bytes * impl.rows);
  impl.source = impl.owned.data();
  impl.row_stride = bytes;
  context.pool().parallel_for(impl.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      std::memcpy(impl.owned.data() + n * bytes, weight.row(n), static_cast<size_t>(bytes));
    }
  });
}

void interleave(Context& context, ConstTensorView weight, MatmulWeight::Impl& impl) {
  const int64_t bytes = group_bytes(impl.dtype, impl.columns);
  impl.owned = Buffer(bytes * impl.groups());
  impl.source = nullptr;
  context.pool().parallel_for(impl.groups(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * kGroupRows;
      pack_group(impl.dtype, weight.row(first), weight.row_stride_bytes(),
                 std::min(kGroupRows, impl.rows - first), impl.columns,
                 impl.owned.data() + g * bytes);
    }
  });
}

}  // namespace

MatmulWeight::MatmulWeight() = default;
MatmulWeight::~MatmulWeight() = default;
MatmulWeight::MatmulWeight(MatmulWeight&&) noexcept = default;
MatmulWeight& MatmulWeight::operator=(MatmulWeight&&) noexcept = default;

int64_t MatmulWeight::rows() const { return impl_->rows; }
int64_t MatmulWeight::columns() const { return impl_->columns; }
DType MatmulWeight::dtype() const { return impl_->dtype; }
int64_t MatmulWeight::bytes() const {
  return impl_->owned.bytes() > 0 ? impl_->owned.bytes()
                                  : row_bytes(impl_->dtype, impl_->columns) * impl_->rows;
}
bool MatmulWeight::owns_memory() const { return impl_->owned.bytes() > 0; }

MatmulWeight prepare_matmul_weight(Context& context, ConstTensorView weight, bool allow_repack) {
  check(weight.defined() && weight.shape().rank() == 2,
        "matmul: weight: expected a matrix [N, K], got {}",
        weight.defined() ? weight.shape().to_string() : "nothing");
  check(is_float(weight.dtype()) || !is_plain(weight.dtype()),
        "matmul: weight: expected f32, f16, bf16 or a block format, got {}", name(weight.dtype()));
  MatmulWeight prepared;
  if (context.device().is_cuda()) {
    prepared.impl_ = prepare_matmul_weight_cuda(context, weight, allow_repack);
    return prepared;
  }
  prepared.impl_ = std::make_unique<MatmulWeight::Impl>();
  MatmulWeight::Impl& impl = *prepared.impl_;
  impl.dtype = weight.dtype();
  impl.rows = weight.shape()[0];
  impl.columns = weight.shape()[1];
  impl.source = weight.data();
  impl.row_stride = weight.row_stride_bytes();
  if (is_cell_dtype(impl.dtype)) {
    if (allow_repack) interleave(context, weight, impl);
  } else if (!aligned_for(weight)) {
    copy_rows(context, weight, impl);
  }
  return prepared;
}

}  // namespace spb::ops
