// Processors without AMX tiles never choose that path; these symbols let the program link.
#include "core/error.h"
#include "spike/spike_matmul/spike_tiles.h"

namespace spb::spike::isa_amx {
namespace {
[[noreturn]] void refuse() {
  fail(ErrorKind::kUsage, "spike_matmul: this build has no tile kernels");
}
}  // namespace

void multiply_spike_tiles(const SpikeTileArgs&) { refuse(); }
void put_spike_tiles(const SpikeTileResults&) { refuse(); }

}  // namespace spb::spike::isa_amx
