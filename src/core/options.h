// Settings from the environment. This is the only place that reads it.
//
//   SPB_ISA      portable | avx2 | avx512 | amx: restrict the instruction set (default: the best)
//   SPB_THREADS  number of compute threads (default: processors available to the process)
//   SPB_PIN      0: do not pin threads to processors (default 1)
//   SPB_TEST_ROOT, SPB_TEST_MODEL  for tests: the folder that holds tests/ (default: the tree they
//                were built from), and a model file
//   NO_COLOR     set: no colours on the terminal
#pragma once

#include <optional>
#include <string>

namespace spb {

std::optional<std::string> option(const char* name);

// The value as an integer in [minimum, maximum]; usage error naming the variable otherwise.
std::optional<int> integer_option(const char* name, int minimum, int maximum);

}  // namespace spb
