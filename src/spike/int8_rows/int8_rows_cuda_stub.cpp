#include "core/cuda/not_built.h"
#include "spike/int8_rows/int8_rows_cuda.h"

namespace spb::spike {

void int8_rows_cuda(Context&, TensorView) { cuda::not_built("int8_rows"); }

}  // namespace spb::spike
