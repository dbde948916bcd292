#include "core/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "core/options.h"

namespace spb {
namespace {
constexpr auto kFirstDraw = std::chrono::milliseconds(500);
constexpr auto kBarInterval = std::chrono::milliseconds(100);
constexpr auto kLineInterval = std::chrono::seconds(10);
constexpr int kBarWidth = 30;
}  // namespace

bool is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

bool use_colors(std::FILE* stream) { return is_terminal(stream) && !option("NO_COLOR"); }

Progress::Progress(std::string label, int64_t total, std::string unit, std::FILE* stream)
    : label_(std::move(label)),
      total_(std::max<int64_t>(total, 1)),
      unit_(std::move(unit)),
      stream_(stream),
      terminal_(is_terminal(stream)),
      next_(start_ + (terminal_ ? Clock::duration(kFirstDraw) : Clock::duration(kLineInterval))) {}

Progress::~Progress() {
  if (terminal_ && drawn_) fmt::print(stream_, "\r\033[K");
}

void Progress::update(int64_t done, Clock::time_point now) {
  if (now < next_) return;
  next_ = now + (terminal_ ? Clock::duration(kBarInterval) : Clock::duration(kLineInterval));
  draw(std::min(done, total_), std::chrono::duration<double>(now - start_).count());
}

void Progress::draw(int64_t done, double seconds) {
  const double share = static_cast<double>(done) / static_cast<double>(total_);
  const double rate = static_cast<double>(done) / std::max(seconds, 1e-9);
  const double left = rate > 0 ? static_cast<double>(total_ - done) / rate : 0;
  drawn_ = true;
  const std::string counts =
      fmt::format("{}/{} {}, {:.0f} {}/s, {:.0f} s left", done, total_, unit_, rate, unit_, left);
  if (!terminal_) {
    fmt::print(stream_, "{}: {:.0f} % ({})\n", label_, share * 100, counts);
  } else {
    const int filled = static_cast<int>(share * kBarWidth);
    fmt::print(stream_, "\r\033[K{} [{:=<{}}{: <{}}] {:3.0f} % {}", label_, "", filled, "",
               kBarWidth - filled, share * 100, counts);
  }
  std::fflush(stream_);
}

}  // namespace spb
