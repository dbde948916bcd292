// Where tests find the files they read: in the tree they were built from, or, for tests that were
// carried to another machine, in a copy of its tests/ that SPB_TEST_ROOT has inside.
#pragma once

#include <string>

#include "core/options.h"

namespace spb::test {

inline std::string source_root() { return option("SPB_TEST_ROOT").value_or(SPB_SOURCE_DIR); }

}  // namespace spb::test
