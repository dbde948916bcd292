// spb run: complete a text, or answer one question.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/command.h"
#include "cli/generation.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/spike_meter.h"
#include "core/error.h"
#include "text/chat_template.h"

namespace spb::cli {
namespace {

struct RunOptions {
  ModelOptions model;
  StateFlags state;
  SamplingFlags sampling;
  TextInput input;
  engine::GenerateOptions generate;
  bool chat = false;
  std::string system;
  std::string chat_template;
  bool json = false;
  bool quiet = false;
  bool spikes = false;
};

std::vector<int32_t> prompt_tokens(const RunOptions& options, const engine::TextModel& model) {
  const std::string prompt = options.input.read();
  const text::Tokenizer& tokenizer = model.need_tokenizer();
  if (!options.chat) {
    return tokenizer.encode(prompt, {.parse_special = true, .add_bos = tokenizer.wants_bos()});
  }
  std::vector<text::ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", prompt});
  const text::ChatTemplate forced;
  const text::ChatTemplate& used =
      options.chat_template == "chatml" ? forced : model.need_chat_template();
  return text::encode_chat(tokenizer, used, messages);
}

nlohmann::json to_json(const Reply& reply, const engine::SessionTimes& times) {
  nlohmann::json tokens = nlohmann::json::array();
  for (const ops::SampledToken& token : reply.tokens) {
    nlohmann::json entry = {{"id", token.id}};
    if (!token.top.empty()) entry["log_probability"] = token.log_probability;
    for (const ops::TokenLogProbability& top : token.top) {
      entry["top"].push_back({{"id", top.id}, {"log_probability", top.log_probability}});
    }
    tokens.push_back(entry);
  }
  return {{"text", reply.text},
          {"finish_reason", std::string(engine::name(reply.reason))},
          {"tokens", tokens},
          {"prompt_tokens", times.prompt_tokens},
          {"prompt_seconds", times.prompt_seconds},
          {"decoded_tokens", times.decoded_tokens},
          {"decode_seconds", times.decode_seconds}};
}

void run(const RunOptions& options) {
  const InterruptGuard interrupt;
  const ops::SamplingSettings sampling = options.sampling.resolve();
  Context context = options.model.make_context();
  const engine::TextModel model =
      engine::load_text_model(context, options.model.path, options.model.load_options());
  const std::vector<int32_t> tokens = prompt_tokens(options, model);
  engine::Session session(context, model, options.state.state_options(), sampling,
                          interrupt.flag());
  session.set_hooks(options.model.hooks());
  std::optional<SpikeMeter> meter;
  if (options.spikes) meter.emplace(context, model, options.model.hooks(), session);
  prefill_with_progress(session, tokens);
  const Reply reply = stream_reply(session, options.generate, !options.json, [&] {
    if (meter) meter->update();
  });
  if (meter) meter->finish();
  if (options.json) fmt::print("{}\n", to_json(reply, session.times()).dump());
  if (!options.quiet && !options.json) print_speed(session.times());
  if (reply.reason == engine::FinishReason::kInterrupted) {
    fail(ErrorKind::kInterrupted, "interrupted");
  }
}

}  // namespace

void add_run(CLI::App& app) {
  CLI::App* command = app.add_subcommand("run", "complete a text, or answer one question");
  auto options = std::make_shared<RunOptions>();
  options->model.add_to(*command);
  options->input.add_to(*command);
  command->add_option("-n,--max-tokens", options->generate.max_tokens,
                      "longest reply (default: until the model ends it)");
  command->add_flag("--chat", options->chat, "ask the prompt as a question in the chat format");
  command->add_option("--system", options->system, "system message for --chat");
  command->add_option("--template", options->chat_template, "use this chat format")
      ->check(CLI::IsMember({"chatml"}));
  command->add_option("--stop", options->generate.stop_sequences, "text that ends the reply");
  command->add_flag("--ignore-end", options->generate.ignore_end, "go on past end tokens");
  command->add_flag("--special", options->generate.keep_special, "show special tokens");
  options->state.add_to(*command);
  options->sampling.add_to(*command);
  command->add_option("--top-logprobs", options->sampling.settings.top_log_probabilities,
                      "with --json: alternatives of every token");
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->add_flag("--spikes", options->spikes,
                    "spiking models: a line with spikes, silence and estimated energy");
  command->add_flag("-q,--quiet", options->quiet, "no speed report");
  command->footer(
      "Examples:\n"
      "  spb run model.gguf -p 'Once upon a time' -n 100\n"
      "  spb run model.gguf --chat -p 'Why is the sky blue?' --temperature 0\n"
      "  cat report.txt | spb run model.gguf -n 200 --context 256k");
  command->callback([options] { run(*options); });
}

}  // namespace spb::cli
