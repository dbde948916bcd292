// spb experts: which experts a model uses while it reads a text.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/experts_output.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "core/error.h"
#include "core/progress.h"
#include "io/atomic_file.h"
#include "model/open_model.h"

namespace spb::cli {
namespace {

struct ExpertsOptions {
  ModelOptions model;
  StateFlags state;
  std::string text;
  std::string window = "512";
  bool json = false;
  std::string csv;
  std::string svg;
};

void check_has_experts(const std::string& path) {
  const model::ModelConfig config = model::open_model(path).config;
  check_data(config.layers_with(model::FeedForward::kMoe) > 0,
             "{}: expected a model with experts (spb convert --experts makes one), got a dense one",
             path);
}

ExpertsReport read_text(const ExpertsOptions& options, const std::atomic<bool>* stop) {
  Context context = options.model.make_context();
  const engine::TextModel model =
      engine::load_text_model(context, options.model.path, options.model.load_options());
  const text::Tokenizer& tokenizer = model.need_tokenizer();
  const std::vector<int32_t> tokens = tokenizer.encode(
      read_file(options.text), {.parse_special = false, .add_bos = tokenizer.wants_bos()});
  ExpertsReport report;
  report.model = options.model.path;
  report.moe = model.model->config().moe;
  report.tokens = std::ssize(tokens);
  report.window = parse_count(options.window, "--window");
  model::StateOptions state = options.state.state_options();
  state.max_context = std::max(state.max_context, report.window);
  LoadRecorder recorder(report.moe);
  model::ForwardHooks hooks = options.model.hooks();
  hooks.expert_observer = &recorder;
  Progress progress("experts", report.tokens, "tokens");
  report.perplexity = engine::measure_perplexity(
      context, *model.model, tokens, report.window, state,
      [&](int64_t done, int64_t) { progress.update(done); }, stop, hooks);
  report.layers = recorder.layers();
  return report;
}

void write_text(const std::string& path, const std::string& text) {
  io::write_file(path, std::as_bytes(std::span(text)));
}

void print_report(const ExpertsReport& report) {
  fmt::print("{}: {} experts, {} of them for each token, {} shared\n",
             printable(report.model, 4096), report.moe.num_experts, report.moe.experts_per_token,
             report.moe.num_shared);
  fmt::print("{} tokens in windows of {}; perplexity {:.4f}\n\n", report.tokens, report.window,
             report.perplexity.value());
  fmt::print("{}", view::to_text(load_table(report)));
}

void experts(const ExpertsOptions& options) {
  const InterruptGuard interrupt;
  check_has_experts(options.model.path);
  const ExpertsReport report = read_text(options, interrupt.flag());
  if (!options.csv.empty()) write_text(options.csv, to_csv(report));
  if (!options.svg.empty()) write_text(options.svg, load_picture(report).str());
  if (options.json) {
    fmt::print("{}\n", to_json(report).dump());
  } else {
    print_report(report);
  }
}

}  // namespace

void add_experts(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("experts", "show which experts a model uses while it reads a text");
  auto options = std::make_shared<ExpertsOptions>();
  options->model.add_to(*command);
  command->add_option("-f,--text", options->text, "the text; - is standard input")
      ->required()
      ->type_name("FILE");
  command->add_option("-w,--window", options->window, "tokens read from a common start")
      ->capture_default_str();
  options->state.add_to(*command);
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->add_option("--csv", options->csv, "a line for each layer and expert")->type_name("FILE");
  command->add_option("--svg", options->svg, "a picture: layers by experts")->type_name("FILE");
  command->footer(
      "Examples:\n"
      "  spb experts moe.gguf --text book.txt\n"
      "  spb experts moe.gguf --text book.txt --svg loads.svg --csv loads.csv\n"
      "  spb experts moe.gguf --text book.txt --json | jq '.layers[].imbalance'");
  command->callback([options] { experts(*options); });
}

}  // namespace spb::cli
