// Session: one sequence in progress; the loop of prefill, sample and decode that every front end
// uses.
//
// A session may be continued: what has been generated stays in its state, and the next prompt
// follows it. Not thread-safe, apart from the stop flag, which any thread or signal handler may
// set.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/context.h"
#include "engine/text_model.h"
#include "model/decoder.h"
#include "ops/sampling/sampling.h"

namespace spb::engine {

struct GenerateOptions {
  int64_t max_tokens = -1;                  // -1: until the end token or the context is full
  std::vector<std::string> stop_sequences;  // text that ends the reply and is not part of it
  bool ignore_end = false;                  // go on past end tokens
  bool keep_special = false;                // show special tokens in the text
};

enum class FinishReason { kEnd, kStopSequence, kLength, kContext, kInterrupted };
std::string_view name(FinishReason reason);

// Wall-clock seconds of the last prefill and generate.
struct SessionTimes {
  int64_t prompt_tokens = 0;
  double prompt_seconds = 0;
  int64_t decoded_tokens = 0;  // forward passes of one token
  double decode_seconds = 0;   // of these and of choosing the tokens after them
};

class Session {
 public:
  using ProgressFunction = std::function<void(int64_t done, int64_t total)>;
  // Receives every sampled token with the text it completes (whole characters, possibly empty).
  using TokenFunction = std::function<void(const ops::SampledToken& token, std::string_view text)>;

  // `stop` may be null. The model must outlive the session.
  Session(Context& context, const TextModel& model, const model::StateOptions& state,
          const ops::SamplingSettings& sampling, const std::atomic<bool>* stop = nullptr);

  Session(const Session&) = delete;  // the decoder refers to the state
  Session& operator=(const Session&) = delete;

  // Observers of the following forward passes; they must outlive the session or be taken back.
  void set_hooks(const model::ForwardHooks& hooks) { hooks_ = hooks; }

  // Feeds prompt tokens (at least one) in chunks. Throws kInterrupted between chunks when the stop
  // flag is set, and a usage error when they do not fit the context.
  void prefill(std::span<const int32_t> tokens, const ProgressFunction& progress = {});

  // Samples until something ends the reply. prefill() must have been called since the last token.
  FinishReason generate(const GenerateOptions& options, const TokenFunction& on_token);

  int64_t position() const { return state_.position(); }
  const SessionTimes& times() const { return times_; }

 private:
  bool stopped() const { return stop_ != nullptr && stop_->load(std::memory_order_relaxed); }
  bool context_full() const;
  void feed(std::span<const int32_t> tokens, bool last);
  ops::SampledToken sample();

  Context& context_;
  const TextModel& model_;
  model::SequenceState state_;
  model::Decoder decoder_;
  int64_t vocab_size_;  // ids that have a text
  ops::Sampler sampler_;
  const std::atomic<bool>* stop_;
  model::ForwardHooks hooks_;
  Tensor logits_;                 // after a prompt, on the host
  ConstTensorView decoded_;       // after a step, on the device; undefined after a prompt
  std::vector<int32_t> pending_;  // sampled, not yet forwarded
  SessionTimes times_;
};

}  // namespace spb::engine
