// How many rows the tests of operators try that work row by row: one, and around the sizes of tiles
// and of what one launch takes at a time. Not part of the library.
#pragma once

#include <cstdint>

namespace spb::ops {

inline constexpr int64_t kAwkwardRows[] = {1, 63, 65, 4095, 4097};

}  // namespace spb::ops
