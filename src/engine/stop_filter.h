// StopFilter: finds stop sequences in text that arrives in pieces, holding back what may begin one.
// The sequence that is complete first counts, however the text is cut into pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace spb::engine {

class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> sequences);

  // Returns the text that can be shown. After a stop sequence has been found, found() is true and
  // nothing more is returned.
  std::string push(std::string_view text);
  std::string flush();  // what was held back, at the end of the text
  bool found() const { return found_; }

 private:
  std::vector<std::string> sequences_;
  std::string held_;
  bool found_ = false;
};

}  // namespace spb::engine
