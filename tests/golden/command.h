// Runs the program as a user does.
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include "golden/golden_recipe.h"
#include "io/test_files.h"

namespace spb::golden {

struct Outcome {
  int status = -1;  // of exit; -1: ended otherwise
  std::string out;
  std::string error;
};

// A line for the shell, without redirections of its own; its output passes through `folder`.
inline Outcome run_command(const TemporaryFolder& folder, const std::string& line) {
  const std::string out = folder.file("stdout");
  const std::string error = folder.file("stderr");
  const int status = std::system((line + " >" + out + " 2>" + error).c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, io::read_text(out), io::read_text(error)};
}

}  // namespace spb::golden
