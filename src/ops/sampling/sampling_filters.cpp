#include "ops/sampling/sampling_filters.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "core/isa.h"
#include "ops/sampling/sampling.h"
#include "ops/sampling/sampling_kernels.h"

namespace spb::ops {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

// Bins of equal width over a range of logits, the highest in bin 0. Never increases with the
// logit, so all of a bin is better than all of the next.
class LogitBins {
 public:
  static constexpr size_t kCount = 1024;

  explicit LogitBins(std::span<const float> logits) {
    constexpr size_t kStrip = 16;  // independent extremes, so that the processor overlaps them
    std::array<float, kStrip> low, high;
    low.fill(logits[0]);
    high.fill(logits[0]);
    size_t i = 0;
    for (; i + kStrip <= logits.size(); i += kStrip) {
      for (size_t j = 0; j < kStrip; ++j) {
        low[j] = logits[i + j] < low[j] ? logits[i + j] : low[j];
        high[j] = logits[i + j] > high[j] ? logits[i + j] : high[j];
      }
    }
    for (; i < logits.size(); ++i) {
      low[0] = std::min(low[0], logits[i]);
      high[0] = std::max(high[0], logits[i]);
    }
    high_ = *std::max_element(high.begin(), high.end());
    const double range = high_ - *std::min_element(low.begin(), low.end());
    scale_ = range > 0 ? static_cast<double>(kCount - 1) / range : 0.0;
  }

  size_t operator()(float logit) const { return static_cast<size_t>((high_ - logit) * scale_); }

 private:
  double high_;
  double scale_;
};

// Returns whether no logit is NaN or +inf.
bool block_maxima(std::span<const float> logits, std::vector<float>& maxima) {
  maxima.resize((logits.size() + kLogitBlock - 1) / kLogitBlock);
  const auto kernel =
      select_isa(&isa_portable::block_maxima, &isa_avx2::block_maxima, &isa_avx512::block_maxima);
  return kernel(logits.data(), static_cast<int64_t>(logits.size()), maxima.data());
}

float highest_of(std::span<const float> values) {
  float highest = -HUGE_VALF;
  for (const float x : values) highest = std::max(highest, x);
  return highest;
}

double exp_weights(std::span<const float> logits, double highest, double temperature,
                   double* weights) {
  const auto kernel =
      select_isa(&isa_portable::exp_weights, &isa_avx2::exp_weights, &isa_avx512::exp_weights);
  return kernel(logits.data(), static_cast<int64_t>(logits.size()), highest, 1.0 / temperature,
                weights);
}

}  // namespace

double log_sum_exp(std::span<const float> logits) {
  std::vector<float> maxima;
  if (!block_maxima(logits, maxima)) {
    const bool nan = std::any_of(logits.begin(), logits.end(), [](float x) { return x != x; });
    return nan ? std::numeric_limits<double>::quiet_NaN() : HUGE_VAL;
  }
  const double highest = highest_of(maxima);
  if (std::isinf(highest)) return highest;
  return highest + std::log(exp_weights(logits, highest, 1.0, nullptr));
}

void CheckedLogits::assign(std::span<const float> logits) {
  values_ = logits;
  if (!block_maxima(logits, maxima_)) {
    const auto wrong =
        std::find_if(logits.begin(), logits.end(), [](float x) { return !(x <= kLargest); });
    fail(ErrorKind::kData, "sampling: logits[{}]: expected a finite number or -inf, got {}",
         wrong - logits.begin(), *wrong);
  }
  highest_ = highest_of(maxima_);
  check_data(highest_ > -HUGE_VALF, "sampling: logits: expected a finite one, got only -inf");
}

int32_t CheckedLogits::highest_id() const {
  const auto block = std::find(maxima_.begin(), maxima_.end(), highest_) - maxima_.begin();
  const auto begin = values_.begin() + block * kLogitBlock;
  return static_cast<int32_t>(std::find(begin, values_.end(), highest_) - values_.begin());
}

double CheckedLogits::sum_of_weights(double temperature) const {
  return exp_weights(values_, highest_, temperature, nullptr);
}

float CheckedLogits::reached_by(int64_t count) const {
  if (count >= static_cast<int64_t>(maxima_.size())) return -kLargest;
  // The count-th highest of the blocks' maxima: each of those blocks has one that reaches it.
  std::vector<float> maxima = maxima_;
  const auto nth = maxima.begin() + (count - 1);
  std::nth_element(maxima.begin(), nth, maxima.end(), std::greater<>());
  return std::max(*nth, -kLargest);
}

void Candidates::reserve(size_t count) {
  if (ids_.size() >= count) return;
  ids_.resize(count);
  logits_.resize(count);
  weights_.resize(count);
}

void Candidates::assign(std::span<const int32_t> ids, std::span<const float> logits) {
  reserve(ids.size());
  std::copy(ids.begin(), ids.end(), ids_.begin());
  std::copy(logits.begin(), logits.end(), logits_.begin());
  count_ = ids.size();
}

void Candidates::collect(const CheckedLogits& logits, double lowest) {
  const std::span<const float> values = logits.values();
  reserve(values.size());
  const double bound = std::max<double>(lowest, -kLargest);
  count_ = 0;
  for (size_t block = 0; block < logits.maxima_.size(); ++block) {
    if (logits.maxima_[block] < bound) continue;
    const size_t end = std::min(values.size(), (block + 1) * kLogitBlock);
    for (size_t i = block * kLogitBlock; i < end; ++i) {
      ids_[count_] = static_cast<int32_t>(i);  // always written: the condition is unpredictable
      logits_[count_] = values[i];
      count_ += values[i] >= bound ? 1 : 0;
    }
  }
}

double Candidates::weigh(double highest, double temperature) {
  return exp_weights({logits_.data(), count_}, highest, temperature, weights_.data());
}

bool Candidates::better(size_t a, size_t b) const {
  return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : ids_[a] < ids_[b];
}

// Shortens the list to those with keep(logit, id, weight), in order. No branch: which ones are kept
// cannot be predicted.
template <typename Keep>
void Candidates::compact(Keep keep) {
  int32_t* ids = ids_.data();
  float* logits = logits_.data();
  double* weights = weights_.data();
  size_t kept = 0;
  for (size_t i = 0; i < count_; ++i) {
    const int32_t id = ids[i];
    const float logit = logits[i];
    const double weight = weights[i];
    ids[kept] = id;
    logits[kept] = logit;
    weights[kept] = weight;
    kept += keep(logit, id, weight) ? 1 : 0;
  }
  count_ = kept;
}

// Keeps the fewest best whose measures sum up to at least `target`. One pass sums the measure by
// bin; only the bin in which the target is reached is sorted.
template <typename Measure>
void Candidates::keep_until(double target, Measure measure) {
  if (count_ == 0) return;
  const LogitBins bin_of({logits_.data(), count_});
  std::array<double, LogitBins::kCount> sums{};
  for (size_t i = 0; i < count_; ++i) sums[bin_of(logits_[i])] += measure(i);
  size_t bin = 0;
  double reached = 0;
  while (bin < sums.size() && reached + sums[bin] < target) reached += sums[bin++];
  if (bin == sums.size()) return;

  boundary_.clear();
  for (size_t i = 0; i < count_; ++i) {
    if (bin_of(logits_[i]) == bin) boundary_.push_back(i);
  }
  std::sort(boundary_.begin(), boundary_.end(), [&](size_t a, size_t b) { return better(a, b); });
  size_t last = boundary_.front();
  for (const size_t i : boundary_) {
    last = i;
    reached += measure(i);
    if (reached >= target) break;
  }
  compact([logit = logits_[last], id = ids_[last]](float l, int32_t i, double) {
    return (l > logit) | ((l == logit) & (i <= id));
  });
}

void Candidates::keep_best(int64_t count) {
  if (count >= static_cast<int64_t>(count_)) return;
  keep_until(static_cast<double>(count), [](size_t) { return 1.0; });
}

void Candidates::keep_weight(double target) {
  keep_until(target, [&](size_t i) { return weights_[i]; });
}

void Candidates::drop_below(double weight) {
  compact([weight](float, int32_t, double w) { return w >= weight; });
}

std::vector<int32_t> Candidates::ids_best_first() const {
  std::vector<size_t> order(count_);
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return better(a, b); });
  std::vector<int32_t> ids;
  for (const size_t i : order) ids.push_back(ids_[i]);
  return ids;
}

int32_t Candidates::draw(Rng& rng) const {
  const double total = std::accumulate(weights_.data(), weights_.data() + count_, 0.0);
  double left = rng.uniform() * total;
  for (size_t i = 0; i < count_; ++i) {
    left -= weights_[i];
    if (left < 0) return ids_[i];
  }
  return ids_[count_ - 1];  // the subtractions rounded to just above zero
}

}  // namespace spb::ops
