// Shortlist: what a CUDA device finds among the logits of one position, so that only the best of
// them come to the host.
//
// The list holds the best finite logits after bias and penalties, in the order of ids: as many as
// asked for or a few more, never more than kCapacity, unless there are no more. Everything in it is
// better than everything that is not, by comparison of the logits alone; who draws from it gets
// what the whole vocabulary would give, where the list is long enough.
// Deterministic: counts and lists do not depend on the order in which threads run; the sum is added
// up in a fixed order.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>

#include "core/buffer.h"
#include "core/context.h"

namespace spb::ops {

struct Shortlist {
  static constexpr int kCapacity = 1024;

  int32_t valid = 0;       // 0: a logit is NaN or +inf, or none is finite; nothing else is then set
  int32_t highest_id = 0;  // the lowest id among equals
  float highest = 0;
  int32_t finite = 0;         // how many logits are
  double sum_of_weights = 0;  // of exp((logit - highest) / temperature); only where asked for
  int32_t count = 0;
  int32_t ids[kCapacity];
  float logits[kCapacity];

  bool complete() const { return count == finite; }
};

// What settings change in the logits before anything is chosen.
struct LogitPenalties {
  float repetition = 1;
  float frequency = 0;
  float presence = 0;
};

struct ShortlistArgs {
  const float* logits = nullptr;  // [vocab_size], on the device
  LogitPenalties penalties;
  double temperature = 0;  // 0: only the highest is wanted
  int count = 0;           // of tokens wanted on the list, at most kCapacity
  bool sum = false;        // whether sum_of_weights is wanted
};

// The memory of one sampler on a device: 2 * 4 bytes for each token where there are biases or
// penalties, some 20 KiB else. Nothing is allocated after the first call.
class ShortlistFinder {
 public:
  ShortlistFinder(const Device& device, int64_t vocab_size);
  ~ShortlistFinder();
  ShortlistFinder(const ShortlistFinder&) = delete;
  ShortlistFinder& operator=(const ShortlistFinder&) = delete;

  const Device& device() const { return device_; }

  void set_bias(const std::map<int32_t, float>& bias);
  // How often penalties count a token: zero until set. Goes to the device with the next find().
  void set_count(int32_t id, int32_t count);

  // Waits for the stream. The answer is valid until the next call.
  const Shortlist& find(Context& context, const ShortlistArgs& args);

 private:
  void send_counts(Context& context);

  Device device_;
  int64_t vocab_size_;
  Buffer work_;    // of the kernels; zeroed, and left zeroed by every call
  Buffer bias_;    // f32 [vocab_size]; empty without biases
  Buffer counts_;  // i32 [vocab_size]; empty until something is counted
  std::unordered_map<int32_t, int32_t> changed_counts_;
  Shortlist* found_ = nullptr;  // host memory that kernels write
};

}  // namespace spb::ops
