// Candidates of one draw and the filters that shorten their list. Better means: higher logit, then
// lower id. Lists stay in the order of ids; nothing here sorts a whole vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/rng.h"

namespace spb::ops {

// The logits of one position with what is known about them. A view: the logits must outlive it.
class CheckedLogits {
 public:
  // Data error on NaN, on +inf, and if all are -inf.
  void assign(std::span<const float> logits);

  std::span<const float> values() const { return values_; }
  float highest() const { return highest_; }
  int32_t highest_id() const;  // the lowest id among equals

  // sum of exp((logit - highest) / temperature)
  double sum_of_weights(double temperature) const;
  // A bound that at least min(count, all finite) logits reach, close to the count-th highest.
  float reached_by(int64_t count) const;

 private:
  friend class Candidates;

  std::span<const float> values_;
  std::vector<float> maxima_;  // of blocks of kLogitBlock
  float highest_ = 0;
};

class Candidates {
 public:
  // The tokens with a finite logit of at least `lowest`.
  void collect(const CheckedLogits& logits, double lowest);

  // These tokens, in the order of ids.
  void assign(std::span<const int32_t> ids, std::span<const float> logits);

  // Sets weight = exp((logit - highest) / temperature); returns their sum.
  double weigh(double highest, double temperature);

  void keep_best(int64_t count);                // the `count` best
  void keep_weight(double target);              // the fewest best with at least this sum of weights
  void drop_below(double weight);               // those with a smaller weight; not all of them
  std::vector<int32_t> ids_best_first() const;  // sorts: for short lists
  int32_t draw(Rng& rng) const;                 // by weight; the list must not be empty

  std::span<const int32_t> ids() const { return {ids_.data(), count_}; }
  std::span<const double> weights() const { return {weights_.data(), count_}; }

 private:
  void reserve(size_t count);
  template <typename Measure>
  void keep_until(double target, Measure measure);
  bool better(size_t a, size_t b) const;
  template <typename Keep>
  void compact(Keep keep);

  size_t count_ = 0;  // the arrays keep their size from token to token
  std::vector<int32_t> ids_;
  std::vector<float> logits_;
  std::vector<double> weights_;
  std::vector<size_t> boundary_;  // scratch of keep_until
};

}  // namespace spb::ops
