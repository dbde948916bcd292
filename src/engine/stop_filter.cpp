#include "engine/stop_filter.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace spb::engine {
namespace {

// Length of the longest proper prefix of `sequence` that ends `text`.
size_t overlap(std::string_view text, std::string_view sequence) {
  for (size_t length = std::min(text.size(), sequence.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == sequence.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace

StopFilter::StopFilter(std::vector<std::string> sequences) : sequences_(std::move(sequences)) {
  for (const std::string& sequence : sequences_) {
    check(!sequence.empty(), "stop sequence: expected at least one character");
  }
}

std::string StopFilter::push(std::string_view text) {
  if (found_) return {};
  held_ += text;
  size_t stop = std::string::npos;
  for (const std::string& sequence : sequences_) stop = std::min(stop, held_.find(sequence));
  found_ = stop != std::string::npos;
  if (found_) return std::exchange(held_, {}).substr(0, stop);
  size_t hold = 0;
  for (const std::string& sequence : sequences_) hold = std::max(hold, overlap(held_, sequence));
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopFilter::flush() { return std::exchange(held_, {}); }

}  // namespace spb::engine
