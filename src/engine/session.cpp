#include "engine/session.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "core/error.h"
#include "engine/stop_filter.h"

namespace spb::engine {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Models pad their vocabulary; a padding id has no text and must never be sampled.
int64_t known_ids(const TextModel& model) {
  const int64_t logits = model.model->config().vocab_size;
  return model.tokenizer ? std::min(logits, model.tokenizer->vocab_size()) : logits;
}

}  // namespace

std::string_view name(FinishReason reason) {
  static constexpr std::array<std::string_view, 5> kNames = {"end", "stop sequence", "length",
                                                             "context", "interrupted"};
  return kNames.at(static_cast<size_t>(reason));
}

Session::Session(Context& context, const TextModel& model, const model::StateOptions& state,
                 const ops::SamplingSettings& sampling, const std::atomic<bool>* stop)
    : context_(context),
      model_(model),
      state_(*model.model, state),
      decoder_(context, *model.model, {&state_}),
      vocab_size_(known_ids(model)),
      sampler_(sampling, vocab_size_),
      stop_(stop),
      logits_(DType::kF32, Shape{1, model.model->config().vocab_size}) {}

bool Session::context_full() const {
  const auto used = state_.position() + static_cast<int64_t>(pending_.size());
  return state_.max_context() >= 0 && used >= state_.max_context();
}

void Session::feed(std::span<const int32_t> tokens, bool last) {
  const model::SequenceSlice slice{tokens, &state_,
                                   last ? model::Logits::kLast : model::Logits::kNone};
  model::forward(context_, *model_.model, {&slice, 1}, last ? logits_.view() : TensorView(),
                 hooks_);
}

void Session::prefill(std::span<const int32_t> tokens, const ProgressFunction& progress) {
  check(!tokens.empty(), "prompt: expected at least one token, got none");
  std::vector<int32_t> all = std::move(pending_);
  pending_.clear();
  all.insert(all.end(), tokens.begin(), tokens.end());
  const auto total = static_cast<int64_t>(all.size());
  check(state_.max_context() < 0 || state_.position() + total <= state_.max_context(),
        "prompt: {} tokens after {} do not fit the context of {}; give a larger --context", total,
        state_.position(), state_.max_context());
  const Clock::time_point start = Clock::now();
  for (int64_t done = 0; done < total;) {
    if (stopped()) fail(ErrorKind::kInterrupted, "interrupted after {} of {} tokens", done, total);
    const int64_t count = std::min(state_.max_chunk(), total - done);
    feed(std::span(all).subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
         done + count == total);
    done += count;
    if (progress) progress(done, total);
  }
  decoded_ = {};
  for (const int32_t id : tokens) sampler_.accept(id);
  times_ = {};
  times_.prompt_tokens = total;
  times_.prompt_seconds = seconds_since(start);
}

FinishReason Session::generate(const GenerateOptions& options, const TokenFunction& on_token) {
  check(state_.position() > 0 && pending_.empty(), "generate: expected a prefilled prompt");
  const text::Tokenizer* tokenizer = model_.tokenizer.get();
  text::StreamDetokenizer detokenizer(model_.need_tokenizer(), options.keep_special);
  StopFilter filter(options.stop_sequences);
  const std::vector<int32_t>& ends = tokenizer->end_tokens();
  const auto finish = [&](FinishReason reason) {
    const std::string rest = filter.push(detokenizer.flush()) + filter.flush();
    if (!rest.empty() && reason != FinishReason::kStopSequence) on_token({-1, 0, {}}, rest);
    return reason;
  };
  for (int64_t count = 0; options.max_tokens < 0 || count < options.max_tokens; ++count) {
    if (stopped()) return finish(FinishReason::kInterrupted);
    const ops::SampledToken token = sample();
    sampler_.accept(token.id);
    pending_.push_back(token.id);
    const bool end = std::find(ends.begin(), ends.end(), token.id) != ends.end();
    if (end && !options.ignore_end) return finish(FinishReason::kEnd);
    on_token(token, filter.push(detokenizer.push(token.id)));
    if (filter.found()) return finish(FinishReason::kStopSequence);
    if (context_full()) return finish(FinishReason::kContext);
    if (count + 1 == options.max_tokens) break;  // its logits would not be looked at
    const Clock::time_point start = Clock::now();
    decoded_ = decoder_.step(pending_, hooks_);
    pending_.clear();
    times_.decode_seconds += seconds_since(start);
    ++times_.decoded_tokens;
  }
  return finish(FinishReason::kLength);
}

// After a prompt from the logits on the host, after a step from those where the step left them.
ops::SampledToken Session::sample() {
  if (!decoded_.defined()) {
    return sampler_.sample({logits_.as<float>(), static_cast<size_t>(vocab_size_)});
  }
  const Clock::time_point start = Clock::now();
  const ops::SampledToken token =
      sampler_.sample(context_, {decoded_.data(), decoded_.dtype(), Shape{vocab_size_}});
  times_.decode_seconds += seconds_since(start);
  return token;
}

}  // namespace spb::engine
