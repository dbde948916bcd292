// spb chat: a conversation in the terminal. The model's state carries over from turn to turn, so a
// new question costs its own tokens only.
#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <optional>

#include "cli/command.h"
#include "cli/generation.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/spike_meter.h"
#include "core/error.h"
#include "core/progress.h"
#include "text/conversation.h"

namespace spb::cli {
namespace {

constexpr const char* kHelp =
    "  /reset          forget the conversation\n"
    "  /system TEXT    forget it and set the system message\n"
    "  /stats          tokens used so far and the speed of the last reply\n"
    "  /quit           leave (so does Ctrl-D); Ctrl-C stops a reply\n"
    "  A line that ends in \\ goes on in the next one.\n";

struct ChatOptions {
  ModelOptions model;
  StateFlags state;
  SamplingFlags sampling;
  engine::GenerateOptions generate;
  std::string system;
  std::string chat_template;
  bool spikes = false;
};

class Conversation {
 public:
  Conversation(Context& context, const engine::TextModel& model, const ChatOptions& options,
               InterruptGuard& interrupt)
      : context_(context),
        model_(model),
        options_(options),
        sampling_(options.sampling.resolve()),
        interrupt_(interrupt),
        template_(options.chat_template == "chatml" ? text::ChatTemplate()
                                                    : model.need_chat_template()),
        system_(options.system) {
    reset();
  }

  void reset() {
    session_ = std::make_unique<engine::Session>(context_, model_, options_.state.state_options(),
                                                 sampling_, interrupt_.flag());
    session_->set_hooks(options_.model.hooks());
    first_ = true;
  }

  void set_system(std::string text) {
    system_ = std::move(text);
    reset();
  }

  // Asks and streams the answer.
  void ask(const std::string& question) {
    const std::vector<int32_t> tokens = turn_tokens(question);
    std::optional<SpikeMeter> meter;
    if (options_.spikes) meter.emplace(context_, model_, options_.model.hooks(), *session_);
    prefill_with_progress(*session_, tokens);
    first_ = false;
    const Reply reply = stream_reply(*session_, options_.generate, true, [&] {
      if (meter) meter->update();
    });
    if (meter) meter->finish();
    closed_ = reply.reason == engine::FinishReason::kEnd;
    if (reply.reason == engine::FinishReason::kContext) {
      fmt::print(stderr, "[the context is full; /reset starts again]\n");
    }
  }

  void print_stats() const {
    fmt::print(stderr, "[{} tokens in the conversation]\n", session_->position());
    if (!first_) print_speed(session_->times());
  }

 private:
  std::vector<int32_t> turn_tokens(const std::string& question) const {
    const text::Tokenizer& tokenizer = model_.need_tokenizer();
    const text::ChatMessage message{"user", question};
    if (!first_) return text::encode_next_turn(tokenizer, message, closed_);
    std::vector<text::ChatMessage> messages;
    if (!system_.empty()) messages.push_back({"system", system_});
    messages.push_back(message);
    return text::encode_chat(tokenizer, template_, messages);
  }

  Context& context_;
  const engine::TextModel& model_;
  const ChatOptions& options_;
  ops::SamplingSettings sampling_;
  InterruptGuard& interrupt_;
  text::ChatTemplate template_;
  std::string system_;
  std::unique_ptr<engine::Session> session_;
  bool first_ = true;
  bool closed_ = false;  // the last reply ended with its end-of-turn token
};

// One question, possibly over several lines; false at the end of the input.
bool read_question(std::string& question) {
  question.clear();
  std::string line;
  const char* mark = "> ";
  do {
    if (!question.empty()) question.back() = '\n';  // in place of the backslash
    if (is_terminal(stdin)) fmt::print("{}", mark);
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) return false;
    question += line;
    mark = "  ";
  } while (!question.empty() && question.back() == '\\');
  return true;
}

// Carries out a line that begins with a slash; false to leave.
bool obey(Conversation& conversation, const std::string& line) {
  const size_t space = line.find(' ');
  const std::string command = line.substr(0, space);
  if (command == "/quit" || command == "/exit") return false;
  if (command == "/reset") {
    conversation.reset();
  } else if (command == "/system") {
    conversation.set_system(space == std::string::npos ? "" : line.substr(space + 1));
  } else if (command == "/stats") {
    conversation.print_stats();
  } else {
    fmt::print("{}", kHelp);
  }
  return true;
}

void chat(const ChatOptions& options) {
  Context context = options.model.make_context();
  const engine::TextModel model =
      engine::load_text_model(context, options.model.path, options.model.load_options());
  InterruptGuard interrupt;
  Conversation conversation(context, model, options, interrupt);
  if (is_terminal(stdin)) fmt::print("{} - /help for commands\n", options.model.path);
  std::string question;
  while (!*interrupt.flag() && read_question(question)) {
    if (question.empty()) continue;
    if (question.front() == '/') {
      if (!obey(conversation, question)) break;
      continue;
    }
    try {
      conversation.ask(question);
    } catch (const Error& error) {
      // A question that does not fit must not end the conversation.
      fmt::print(stderr, "spb: {}\n", error.what());
      if (error.kind() == ErrorKind::kInterrupted) conversation.reset();
    }
    interrupt.reset();
  }
}

}  // namespace

void add_chat(CLI::App& app) {
  CLI::App* command = app.add_subcommand("chat", "talk to a model in the terminal");
  auto options = std::make_shared<ChatOptions>();
  options->model.add_to(*command);
  command->add_option("--system", options->system, "system message");
  command->add_option("--template", options->chat_template, "use this chat format")
      ->check(CLI::IsMember({"chatml"}));
  command->add_option("-n,--max-tokens", options->generate.max_tokens,
                      "longest reply (default: until the model ends it)");
  command->add_option("--stop", options->generate.stop_sequences, "text that ends a reply");
  command->add_flag("--spikes", options->spikes,
                    "spiking models: a line with spikes, silence and estimated energy");
  options->state.add_to(*command);
  options->sampling.add_to(*command);
  command->footer(
      "Example:\n"
      "  spb chat model.gguf --system 'Answer in one sentence.' --temperature 0.2");
  command->callback([options] { chat(*options); });
}

}  // namespace spb::cli
