// Interleaving of block rows into cells: the choice of the kernel (matmul_pack_cpu_kernels.cpp).
#include "core/error.h"
#include "core/isa.h"
#include "ops/matmul/matmul_cells.h"

namespace spb::ops {
namespace {

void (*kernel_for(DType dtype))(const PackArgs&) {
  const PackKernels& k =
      select_isa(isa_portable::kPackKernels, isa_avx2::kPackKernels, isa_avx512::kPackKernels);
  switch (dtype) {
    case DType::kQ8_0: return k.q8_0;
    case DType::kQ4_0: return k.q4_0;
    case DType::kQ4_1: return k.q4_1;
    case DType::kQ5_0: return k.q5_0;
    case DType::kQ5_1: return k.q5_1;
    case DType::kQ4_K: return k.q4_k;
    case DType::kQ5_K: return k.q5_k;
    case DType::kQ6_K: return k.q6_k;
    default: fail(ErrorKind::kUsage, "matmul: cannot interleave {}", name(dtype));
  }
}

}  // namespace

void pack_group(DType dtype, const std::byte* rows, int64_t row_stride, int64_t row_count,
                int64_t columns, std::byte* group) {
  kernel_for(dtype)({rows, row_stride, row_count, columns, group});
}

}  // namespace spb::ops
