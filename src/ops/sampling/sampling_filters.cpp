#include "ops/sampling/sampling_filters.h"

#include <algorithm>
#include <array>

namespace spb::ops {
namespace {

bool better(const SamplingCandidate& a, const SamplingCandidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Bins of equal width over the range of the logits, the highest logit in bin 0.
class LogitBins {
 public:
  static constexpr int kCount = 1024;

  explicit LogitBins(const std::vector<SamplingCandidate>& candidates) {
    float low = candidates.front().logit;
    float high = low;
    for (const SamplingCandidate& c : candidates) {
      low = c.logit < low ? c.logit : low;
      high = c.logit > high ? c.logit : high;
    }
    high_ = high;
    scale_ = high > low ? (kCount - 1) / (static_cast<double>(high) - low) : 0.0;
  }

  size_t operator()(float logit) const { return static_cast<size_t>((high_ - logit) * scale_); }

 private:
  double high_;
  double scale_;
};

// Keeps the fewest best candidates whose measures sum up to at least `target`. One pass sums the
// measure by bin; only the bin in which the target is reached is sorted.
template <typename Measure>
void keep_best(std::vector<SamplingCandidate>& candidates, double target, Measure measure) {
  const LogitBins bin_of(candidates);
  std::array<double, LogitBins::kCount> sums{};
  for (const SamplingCandidate& c : candidates) sums[bin_of(c.logit)] += measure(c);
  size_t bin = 0;
  double reached = 0;
  while (bin < sums.size() && reached + sums[bin] < target) reached += sums[bin++];
  if (bin == sums.size()) return;

  std::vector<SamplingCandidate> boundary;
  for (const SamplingCandidate& c : candidates) {
    if (bin_of(c.logit) == bin) boundary.push_back(c);
  }
  std::sort(boundary.begin(), boundary.end(), better);
  SamplingCandidate last = boundary.front();
  for (const SamplingCandidate& c : boundary) {
    last = c;
    reached += measure(c);
    if (reached >= target) break;
  }
  std::erase_if(candidates, [&](const SamplingCandidate& c) { return better(last, c); });
}

}  // namespace

void keep_best_count(std::vector<SamplingCandidate>& candidates, int64_t count) {
  if (count >= static_cast<int64_t>(candidates.size())) return;
  keep_best(candidates, static_cast<double>(count), [](const SamplingCandidate&) { return 1.0; });
}

void keep_best_share(std::vector<SamplingCandidate>& candidates, double share) {
  double total = 0;
  for (const SamplingCandidate& c : candidates) total += c.weight;
  keep_best(candidates, share * total, [](const SamplingCandidate& c) { return c.weight; });
}

int32_t draw(const std::vector<SamplingCandidate>& candidates, Rng& rng) {
  double total = 0;
  for (const SamplingCandidate& c : candidates) total += c.weight;
  double left = rng.uniform() * total;
  for (const SamplingCandidate& c : candidates) {
    left -= c.weight;
    if (left < 0) return c.id;
  }
  return candidates.back().id;  // the subtractions rounded to just above zero
}

}  // namespace spb::ops
