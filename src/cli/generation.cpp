#include "cli/generation.h"

#include <fmt/format.h>

#include <cstdio>

#include "core/error.h"
#include "core/progress.h"

namespace spb::cli {
namespace {

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

void write_out(std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (!written || std::fflush(stdout) != 0) throw_system_error("writing to standard output");
}

}  // namespace

void prefill_with_progress(engine::Session& session, std::span<const int32_t> tokens) {
  Progress progress("prompt", static_cast<int64_t>(tokens.size()), "tokens");
  session.prefill(tokens, [&](int64_t done, int64_t) { progress.update(done); });
}

Reply stream_reply(engine::Session& session, const engine::GenerateOptions& options, bool show,
                   const std::function<void()>& after_token) {
  Reply reply;
  reply.reason =
      session.generate(options, [&](const ops::SampledToken& token, std::string_view text) {
        if (token.id >= 0) reply.tokens.push_back(token);
        reply.text += text;
        if (show) write_out(text);
        if (after_token) after_token();
      });
  if (show && (reply.text.empty() || reply.text.back() != '\n')) write_out("\n");
  return reply;
}

void print_speed(const engine::SessionTimes& times) {
  fmt::print(stderr, "[prompt {} tokens, {:.1f} tokens/s; reply {} tokens, {:.1f} tokens/s]\n",
             times.prompt_tokens, rate(times.prompt_tokens, times.prompt_seconds),
             times.decoded_tokens + 1, rate(times.decoded_tokens, times.decode_seconds));
}

}  // namespace spb::cli
