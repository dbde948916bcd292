#include "cli/status_line.h"

#include <fmt/format.h>
#include <sys/ioctl.h>

#include "core/progress.h"

namespace spb::cli {

// Control sequences of the VT100: ESC 7 and ESC 8 keep and restore the cursor, "r" sets the rows
// that scroll, "H" moves, "K" erases to the end of the line.
StatusLine::StatusLine(std::FILE* stream) : stream_(stream) {
  winsize size{};
  if (!is_terminal(stream) || ioctl(fileno(stream), TIOCGWINSZ, &size) != 0 || size.ws_row < 3) {
    return;
  }
  rows_ = size.ws_row;
  columns_ = size.ws_col;
  // The new line makes room when the cursor stands on the last row.
  fmt::print(stream_, "\n\033[A\0337\033[1;{}r\0338", rows_ - 1);
  std::fflush(stream_);
}

StatusLine::~StatusLine() {
  if (!shown()) return;
  fmt::print(stream_, "\0337\033[r\033[{};1H\033[2K\0338", rows_);
  std::fflush(stream_);
}

void StatusLine::show(std::string_view text) {
  if (!shown()) return;
  fmt::print(stream_, "\0337\033[{};1H\033[2K{}\0338", rows_,
             text.substr(0, static_cast<size_t>(columns_)));
  std::fflush(stream_);
}

}  // namespace spb::cli
