// What run and chat have in common: prefill with a progress bar, stream text, report speed.
#pragma once

#include <functional>
#include <string>

#include "engine/session.h"

namespace spb::cli {

// Feeds `tokens`, drawing a progress bar on stderr when it takes long.
void prefill_with_progress(engine::Session& session, std::span<const int32_t> tokens);

// Streams the reply to stdout and returns it. Rejoins a line that does not end in a newline.
struct Reply {
  std::string text;
  std::vector<ops::SampledToken> tokens;
  engine::FinishReason reason = engine::FinishReason::kEnd;
};
// `after_token` may be empty.
Reply stream_reply(engine::Session& session, const engine::GenerateOptions& options, bool show,
                   const std::function<void()>& after_token = {});

// "prompt 34 tokens, 512.0 tokens/s; reply 80 tokens, 95.1 tokens/s" on stderr.
void print_speed(const engine::SessionTimes& times);

}  // namespace spb::cli
