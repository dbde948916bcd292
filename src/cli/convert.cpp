// spb convert: a Hugging Face folder into one GGUF file.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/write_progress.h"
#include "convert/convert.h"

namespace spb::cli {
namespace {

struct ConvertOptions {
  std::string source;
  std::string output;
  std::string format = "bf16";
  std::string embedding_format;
  bool force = false;
};

void run_convert(const ConvertOptions& options) {
  convert::ConvertSettings settings;
  settings.format = parse_weight_format(options.format, "--format");
  if (!options.embedding_format.empty()) {
    settings.embedding_format = parse_weight_format(options.embedding_format, "--embedding-format");
  }
  settings.overwrite = options.force;
  Context context;
  WriteProgress progress;
  const convert::ConvertResult result =
      convert::convert_folder(context, options.source, options.output, settings,
                              [&](int64_t done, int64_t total) { progress.update(done, total); });
  fmt::print("{}: {} layers, {} parameters, {}\n", options.output, result.config.num_layers(),
             format_count(model::parameter_count(result.config)), format_bytes(result.bytes));
}

}  // namespace

void add_convert(CLI::App& app) {
  CLI::App* command = app.add_subcommand("convert", "turn a Hugging Face folder into a GGUF file");
  auto options = std::make_shared<ConvertOptions>();
  command->add_option("source", options->source, "folder with config.json and the weights")
      ->required()
      ->type_name("FOLDER");
  command->add_option("-o,--output", options->output, "file to write")->required();
  command->add_option("--format", options->format, "f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1")
      ->capture_default_str();
  command->add_option("--embedding-format", options->embedding_format,
                      "for the embedding table (default: q8_0 when --format is smaller)");
  command->add_flag("--force", options->force, "replace an existing file");
  command->footer(
      "Reads model types gla_swa (SpikingBrain), qwen2 and llama from safetensors or PyTorch "
      "files.\n"
      "Example:\n"
      "  spb convert SpikingBrain-7B -o spikingbrain-7b.gguf --format q8_0");
  command->callback([options] { run_convert(*options); });
}

}  // namespace spb::cli
