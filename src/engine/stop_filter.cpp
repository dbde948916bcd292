#include "engine/stop_filter.h"

#include <algorithm>
#include <optional>
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

// Where the sequence that is complete first begins; of several that end together, the longest.
std::optional<size_t> first_stop(const std::string& text,
                                 const std::vector<std::string>& sequences) {
  std::optional<size_t> begin;
  size_t end = std::string::npos;
  for (const std::string& sequence : sequences) {
    const size_t found = text.find(sequence);
    if (found == std::string::npos) continue;
    const size_t found_end = found + sequence.size();
    if (found_end > end || (found_end == end && found >= *begin)) continue;
    begin = found;
    end = found_end;
  }
  return begin;
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
  if (const std::optional<size_t> stop = first_stop(held_, sequences_)) {
    found_ = true;
    return std::exchange(held_, {}).substr(0, *stop);
  }
  size_t hold = 0;
  for (const std::string& sequence : sequences_) hold = std::max(hold, overlap(held_, sequence));
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopFilter::flush() { return std::exchange(held_, {}); }

}  // namespace spb::engine
