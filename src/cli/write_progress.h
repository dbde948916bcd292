// Progress of writing a file whose size is known when the first bytes are.
#pragma once

#include <optional>

#include "core/progress.h"

namespace spb::cli {

class WriteProgress {
 public:
  void update(int64_t bytes, int64_t total_bytes) {
    if (!bar_) bar_.emplace("writing", total_bytes >> 20, "MiB");
    bar_->update(bytes >> 20);
  }

 private:
  std::optional<Progress> bar_;
};

}  // namespace spb::cli
