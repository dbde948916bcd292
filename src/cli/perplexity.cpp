// spb perplexity: how well a model predicts a text.
#include "engine/perplexity.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "core/progress.h"

namespace spb::cli {
namespace {

struct PerplexityOptions {
  ModelOptions model;
  StateFlags state;
  TextInput input;
  std::string window = "512";
  bool json = false;
};

void perplexity(const PerplexityOptions& options) {
  const InterruptGuard interrupt;
  Context context = options.model.make_context();
  const engine::TextModel model =
      engine::load_text_model(context, options.model.path, options.model.load_options());
  const text::Tokenizer& tokenizer = model.need_tokenizer();
  const std::vector<int32_t> tokens = tokenizer.encode(
      options.input.read(), {.parse_special = false, .add_bos = tokenizer.wants_bos()});
  const int64_t window = parse_count(options.window, "--window");
  model::StateOptions state = options.state.state_options();
  state.max_context = std::max(state.max_context, window);
  Progress progress("perplexity", static_cast<int64_t>(tokens.size()), "tokens");
  const engine::Perplexity result = engine::measure_perplexity(
      context, *model.model, tokens, window, state,
      [&](int64_t done, int64_t) { progress.update(done); }, interrupt.flag(),
      options.model.hooks());
  if (options.json) {
    fmt::print("{}\n", nlohmann::json({{"perplexity", result.value()},
                                       {"standard_error", result.standard_error()},
                                       {"negative_log_likelihood", result.negative_log_likelihood},
                                       {"predictions", result.predictions},
                                       {"window", window}})
                           .dump());
  } else {
    fmt::print("perplexity {:.4f} +- {:.4f} over {} predictions in windows of {} tokens\n",
               result.value(), result.standard_error(), result.predictions, window);
  }
}

}  // namespace

void add_perplexity(CLI::App& app) {
  CLI::App* command = app.add_subcommand("perplexity", "measure how well a model predicts a text");
  auto options = std::make_shared<PerplexityOptions>();
  options->model.add_to(*command);
  options->input.add_to(*command);
  command->add_option("-w,--window", options->window, "tokens predicted from a common start")
      ->capture_default_str();
  options->state.add_to(*command);
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "The text is cut into windows that do not overlap; every token of a window but the first\n"
      "is predicted from those before it.\n"
      "Example:\n"
      "  spb perplexity model.gguf -f book.txt --window 2048");
  command->callback([options] { perplexity(*options); });
}

}  // namespace spb::cli
