#include "core/cuda/not_built.h"
#include "ops/sampling/sampling_cuda.h"

namespace spb::ops {

ShortlistFinder::ShortlistFinder(const Device&, int64_t) { cuda::not_built("sampling"); }
ShortlistFinder::~ShortlistFinder() = default;
void ShortlistFinder::set_bias(const std::map<int32_t, float>&) { cuda::not_built("sampling"); }
void ShortlistFinder::set_count(int32_t, int32_t) { cuda::not_built("sampling"); }
const Shortlist& ShortlistFinder::find(Context&, const ShortlistArgs&) {
  cuda::not_built("sampling");
}

}  // namespace spb::ops
