// Progress of a long task: a bar on a terminal, a plain line every ten seconds elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace spb {

bool is_terminal(std::FILE* stream);
bool use_colors(std::FILE* stream);  // a terminal, and NO_COLOR is not set

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  // `unit` is what is counted ("tokens", "tensors"). Writes to stderr by default. Nothing is drawn
  // before the task has lasted half a second, so short tasks stay silent.
  Progress(std::string label, int64_t total, std::string unit, std::FILE* stream = stderr);
  ~Progress();  // removes the bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done) { update(done, Clock::now()); }
  void update(int64_t done, Clock::time_point now);
  Clock::time_point start() const { return start_; }

 private:
  void draw(int64_t done, double seconds);

  std::string label_;
  int64_t total_;
  std::string unit_;
  std::FILE* stream_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_;
};

}  // namespace spb
