// Context: what every operator needs beside its arguments.
//
// One Context belongs to one thread of control. Operators take scratch memory from its arena and
// split work over its pool; they hold no state of their own.
#pragma once

#include "core/arena.h"
#include "core/thread_pool.h"

namespace spb {

class Context {
 public:
  explicit Context(int threads = 0) : pool_(threads) {}

  ThreadPool& pool() { return pool_; }
  Arena& arena() { return arena_; }

 private:
  ThreadPool pool_;
  Arena arena_;
};

}  // namespace spb
