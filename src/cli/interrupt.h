// Ctrl-C: the first one asks the running task to end cleanly, the second one kills the program.
#pragma once

#include <atomic>

namespace spb::cli {

// Installs the handler for SIGINT and SIGTERM for as long as it lives.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  const std::atomic<bool>* flag() const;
  void reset();  // forget an interrupt that has been dealt with
};

}  // namespace spb::cli
