// StatusLine: the last row of a terminal, kept free of what is printed above it.
#pragma once

#include <cstdio>
#include <string_view>

namespace spb::cli {

class StatusLine {
 public:
  // Reserves the row where `stream` is a terminal of more than two rows; otherwise does nothing.
  explicit StatusLine(std::FILE* stream);
  ~StatusLine();  // gives the row back
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool shown() const { return rows_ > 0; }
  void show(std::string_view text);  // cut to the width

 private:
  std::FILE* stream_;
  int rows_ = 0;  // of the terminal; 0: no terminal
  int columns_ = 0;
};

}  // namespace spb::cli
