// spb synth: a model of a published shape with random weights, for benchmarks and tests.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/write_progress.h"
#include "convert/synthesize.h"
#include "core/error.h"

namespace spb::cli {
namespace {

struct SynthOptions {
  std::string preset;
  std::string output;
  convert::SynthesizeOptions options;
  std::string format = "q4_0";
  std::string embedding_format;
  int64_t layers = 0;
};

void synth(SynthOptions& options) {
  options.options.format = parse_weight_format(options.format, "--format");
  if (!options.embedding_format.empty()) {
    options.options.embedding_format =
        parse_weight_format(options.embedding_format, "--embedding-format");
  }
  Context context;
  model::ModelConfig config = model::preset(options.preset);
  if (options.layers > 0) {
    check(options.layers <= config.num_layers(), "--layers: expected 1 to {}, got {}",
          config.num_layers(), options.layers);
    config.layers.resize(static_cast<size_t>(options.layers));
  }
  WriteProgress progress;
  convert::synthesize(context, config, options.options, options.output,
                      [&](int64_t done, int64_t total) { progress.update(done, total); });
  fmt::print("{}: {} parameters, {}\n", options.output,
             format_count(model::count_parameters(config).total), options.format);
}

}  // namespace

void add_synth(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("synth", "write a model of a preset's shape with random weights");
  auto options = std::make_shared<SynthOptions>();
  command
      ->add_option("--preset", options->preset,
                   fmt::format("one of {}", fmt::join(model::preset_names(), ", ")))
      ->required();
  command->add_option("-o,--output", options->output, "file to write")->required();
  command->add_option("--format", options->format, "weight format")->capture_default_str();
  command->add_option("--embedding-format", options->embedding_format,
                      "for the embedding table (default: q8_0 when --format is smaller)");
  command->add_option("--layers", options->layers, "only the first N layers of the preset")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
  command->add_option("--seed", options->options.seed, "same seed, same weights")
      ->capture_default_str();
  command
      ->add_option("--architecture", options->options.architecture,
                   "GGUF architecture: spikingbrain, llama or qwen2 (default: the preset's own)")
      ->check(CLI::IsMember({"spikingbrain", "llama", "qwen2"}));
  command->footer(
      "Example:\n"
      "  spb synth --preset spikingbrain-1b --format q4_0 -o 1b.gguf && spb bench 1b.gguf");
  command->callback([options] { synth(*options); });
}

}  // namespace spb::cli
