// spb quantize: a model whose projections are 8-bit codes and whose activations are spikes.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/write_progress.h"
#include "convert/convert.h"
#include "core/error.h"
#include "core/progress.h"

namespace spb::cli {
namespace {

struct QuantizeOptions {
  std::string source;
  std::string output;
  bool spike = false;
  double k = 3.0;
  std::string site_k;
  std::string calibration;
  int64_t texts = 128;
  int64_t text_tokens = 256;
  std::string format;
  std::string embedding_format;
  bool report = false;
  bool force = false;
};

// Paragraphs of a file as token sequences: at most `texts`, each cut to `text_tokens`.
std::vector<std::vector<int32_t>> calibration_texts(const QuantizeOptions& options) {
  std::vector<std::vector<int32_t>> texts;
  if (options.calibration.empty()) return texts;
  const auto tokenizer = engine::load_tokenizer(options.source);
  const std::string all = read_file(options.calibration);
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = std::min(all.find("\n\n", begin), all.size());
    std::vector<int32_t> tokens = tokenizer->encode(all.substr(begin, end - begin));
    begin = end + 2;
    if (tokens.empty()) continue;
    if (static_cast<int64_t>(tokens.size()) > options.text_tokens) {
      tokens.resize(static_cast<size_t>(options.text_tokens));
    }
    texts.push_back(std::move(tokens));
    if (static_cast<int64_t>(texts.size()) == options.texts) break;
  }
  check(!texts.empty(), "{}: expected at least one paragraph of text", options.calibration);
  return texts;
}

void print_codes(const convert::ConvertResult& result, bool each) {
  int64_t codes = 0;
  int64_t beyond = 0;
  for (const convert::CodeReport& report : result.codes) {
    codes += report.codes;
    beyond += report.beyond;
    if (each) {
      fmt::print("  {:<32} {:>12} codes, {:.3f} % beyond 8 bits\n", report.tensor, report.codes,
                 100.0 * static_cast<double>(report.beyond) / static_cast<double>(report.codes));
    }
  }
  fmt::print("  {} matrices as codes, {} of {} codes beyond 8 bits\n", result.codes.size(), beyond,
             codes);
}

void run_quantize(const QuantizeOptions& options) {
  check(options.spike || !options.format.empty(), "quantize: expected --spike, --format or both");
  convert::ConvertSettings settings;
  if (!options.format.empty()) settings.format = parse_weight_format(options.format, "--format");
  if (!options.embedding_format.empty()) {
    settings.embedding_format = parse_weight_format(options.embedding_format, "--embedding-format");
  }
  settings.overwrite = options.force;
  std::optional<Progress> calibration;
  if (options.spike) {
    settings.spikes = convert::SpikeSettings{options.k, calibration_texts(options),
                                             model::parse_site_rules(options.site_k, "--k-site")};
    settings.calibration_progress = [&](int64_t done, int64_t total) {
      if (!calibration) calibration.emplace("calibrating", total, "texts");
      calibration->update(done);
      if (done == total) calibration.reset();
    };
  }
  Context context;
  convert::ConvertResult result;
  {
    WriteProgress progress;
    result =
        convert::convert_model(context, options.source, options.output, settings,
                               [&](int64_t done, int64_t total) { progress.update(done, total); });
  }
  fmt::print("{}: {} parameters, {}\n", options.output,
             format_count(model::count_parameters(result.config).total),
             format_bytes(result.bytes));
  if (!result.codes.empty()) print_codes(result, options.report);
  const int64_t routed = result.config.layers_with(model::FeedForward::kMoe);
  if (options.spike && routed > 0) {
    fmt::print("  routed experts of {} layers stay as they are: they do not spike\n", routed);
  }
}

}  // namespace

void add_quantize(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("quantize", "write a model with smaller weights, or as a spiking model");
  auto options = std::make_shared<QuantizeOptions>();
  command->add_option("source", options->source, "GGUF file, or folder of a Hugging Face model")
      ->required()
      ->type_name("MODEL");
  command->add_option("-o,--output", options->output, "file to write")->required();
  command->add_flag("--spike", options->spike,
                    "W8ASpike: 8-bit codes for projections, spike counts for their inputs");
  command->add_option("--k", options->k, "threshold = mean |x| / k: larger fires more")
      ->capture_default_str();
  command
      ->add_option("--k-site", options->site_k,
                   "k of single places instead, later ones first: ffn_in=4.5,0-3:all=6; off leaves "
                   "a site without spikes and codes")
      ->type_name("[LAYERS:]SITE=K,..");
  command->add_option("--calibration", options->calibration,
                      "text file; scales are searched for the least error of the outputs on its "
                      "paragraphs (without it, of the weights)");
  command->add_option("--texts", options->texts, "paragraphs to use")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--text-tokens", options->text_tokens, "tokens of each to use")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--format", options->format,
                      "for matrices that do not become codes (default: as in the source)");
  command->add_option("--embedding-format", options->embedding_format,
                      "for the embedding table (default: q8_0 when --format is smaller)");
  command->add_flag("--report", options->report, "one line for every matrix");
  command->add_flag("--force", options->force, "replace an existing file");
  command->footer(
      "Example:\n"
      "  spb quantize model.gguf --spike --calibration texts.txt -o spiking.gguf");
  command->callback([options] { run_quantize(*options); });
}

}  // namespace spb::cli
