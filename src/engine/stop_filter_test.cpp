#include "engine/stop_filter.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/rng.h"

namespace spb::engine {
namespace {

std::string random_text(Rng& rng, int64_t length) {
  std::string text;
  for (int64_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng.below(3));
  return text;
}

// Where the first complete stop sequence begins, found one character at a time.
size_t first_stop(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t begin = std::string::npos;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop)) begin = std::min(begin, end - stop.size());
    }
    if (begin != std::string::npos) return begin;
  }
  return std::string::npos;
}

// However the text is cut, the filter shows exactly what precedes the first stop sequence.
TEST(StopFilter, EqualsASearchOfTheWholeText) {
  Rng rng(7);
  for (int round = 0; round < 500; ++round) {
    const std::string text = random_text(rng, rng.below(40));
    const std::vector<std::string> stops = {random_text(rng, 1 + rng.below(5)),
                                            random_text(rng, 1 + rng.below(5))};
    const size_t first = first_stop(text, stops);
    StopFilter filter(stops);
    std::string shown;
    for (size_t at = 0; at < text.size() && !filter.found();) {
      const size_t length = 1 + static_cast<size_t>(rng.below(4));
      shown += filter.push(std::string_view(text).substr(at, length));
      at += length;
    }
    if (!filter.found()) shown += filter.flush();
    EXPECT_EQ(filter.found(), first != std::string::npos);
    EXPECT_EQ(shown, text.substr(0, first));
  }
}

TEST(StopFilter, HoldsBackOnlyWhatMayBeginAStopSequence) {
  StopFilter filter({"END"});
  EXPECT_EQ(filter.push("the E"), "the ");
  EXPECT_EQ(filter.push("N"), "");
  EXPECT_EQ(filter.push("emy"), "ENemy");
  EXPECT_FALSE(filter.found());
}

TEST(StopFilter, RefusesAnEmptySequence) { EXPECT_THROW(StopFilter({""}), Error); }

}  // namespace
}  // namespace spb::engine
