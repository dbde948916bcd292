// Processors without AMX tiles never choose that path; these symbols let the program link.
#include "core/error.h"
#include "ops/matmul/matmul_tiles.h"

namespace spb::ops::isa_amx {
namespace {
[[noreturn]] void refuse() { fail(ErrorKind::kUsage, "matmul: this build has no tile kernels"); }
}  // namespace

void convert_strip(const float*, int64_t, int64_t, int64_t, std::byte*) { refuse(); }
void convert_panel(const float*, int64_t, int64_t, int64_t, std::byte*) { refuse(); }
void expand_cells(DType, const std::byte*, int64_t, std::byte*) { refuse(); }
void expand_floats(DType, const std::byte*, int64_t, int64_t, int64_t, std::byte*) { refuse(); }
void multiply_tiles(const TileProduct&) { refuse(); }
void multiply_rows(const RowProduct&) { refuse(); }

}  // namespace spb::ops::isa_amx
