// Memory of this process, as the operating system counts it.
#pragma once

#include <cstdint>

namespace spb {

struct MemoryUsage {
  int64_t resident = 0;   // pages in memory, mapped files included
  int64_t anonymous = 0;  // of these, private memory: weights that were copied, state, scratch
  int64_t file = 0;       // of these, pages of mapped files
  int64_t peak = 0;       // largest resident size so far
};

// All zero where the system does not tell (only Linux does).
MemoryUsage memory_usage();

// Memory that a program could allocate now without others being swapped out; 0 where unknown.
int64_t available_memory();

}  // namespace spb
