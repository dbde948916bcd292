// spb convert: a model into one GGUF file, optionally as a mixture of experts.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/write_progress.h"
#include "convert/compare_models.h"
#include "convert/convert.h"

namespace spb::cli {
namespace {

struct ConvertOptions {
  std::string source;
  std::string output;
  std::string format;
  std::string embedding_format;
  bool force = false;

  CLI::Option* experts = nullptr;  // given: upcycle
  convert::UpcycleSettings upcycle;
  std::string scaling = "exact";
  std::string router = "softmax";
  std::string layers;
  bool no_check = false;
};

convert::UpcycleSettings upcycle_settings(const ConvertOptions& options) {
  convert::UpcycleSettings settings = options.upcycle;
  settings.scaling =
      options.scaling == "paper" ? convert::ExpertScaling::kPaper : convert::ExpertScaling::kExact;
  settings.moe.score =
      options.router == "sigmoid" ? ops::RouterScore::kSigmoid : ops::RouterScore::kSoftmax;
  if (!options.layers.empty()) settings.layers = parse_counts(options.layers, "--moe-layers");
  return settings;
}

// The promise of upcycling: the mixture computes what the dense model computes.
void check_upcycled(Context& context, const ConvertOptions& options) {
  const convert::ModelDifference found =
      convert::compare_models(context, options.source, options.output);
  fmt::print(
      "against the dense model: logits differ by {:.2g} of the largest, same most likely "
      "token after {} of {} tokens\n",
      found.error, found.same_choice, found.tokens);
  const bool rounds = !options.format.empty() && options.format != "f32";
  if (rounds) fmt::print("  (rounding to {} included)\n", options.format);
  if (options.scaling == "paper") {
    fmt::print("  (the paper's scaling is near, not equal; --expert-scaling exact is equal)\n");
  }
}

void run_convert(const ConvertOptions& options) {
  convert::ConvertSettings settings;
  if (!options.format.empty()) settings.format = parse_weight_format(options.format, "--format");
  if (!options.embedding_format.empty()) {
    settings.embedding_format = parse_weight_format(options.embedding_format, "--embedding-format");
  }
  if (options.experts->count() > 0) settings.upcycle = upcycle_settings(options);
  settings.overwrite = options.force;
  Context context;
  convert::ConvertResult result;
  {
    WriteProgress progress;
    result =
        convert::convert_model(context, options.source, options.output, settings,
                               [&](int64_t done, int64_t total) { progress.update(done, total); });
  }
  const model::ParameterCount count = model::count_parameters(result.config);
  fmt::print("{}: {} layers, {} parameters", options.output, result.config.num_layers(),
             format_count(count.total));
  if (count.active < count.total) fmt::print(", {} active", format_count(count.active));
  fmt::print(", {}\n", format_bytes(result.bytes));
  if (settings.upcycle && !options.no_check) check_upcycled(context, options);
}

void add_upcycling(CLI::App& command, ConvertOptions& options) {
  constexpr const char* kGroup = "Mixture of experts";
  model::MoeConfig& moe = options.upcycle.moe;
  options.experts = command
                        .add_option("--experts", moe.num_experts,
                                    "make every dense network N routed experts, equal at first")
                        ->group(kGroup)
                        ->type_name("N");
  const auto add = [&](const char* flag, auto& value, const char* text) {
    return command.add_option(flag, value, text)
        ->group(kGroup)
        ->needs(options.experts)
        ->capture_default_str();
  };
  add("--experts-per-token", moe.experts_per_token, "experts the router chooses");
  add("--shared-experts", moe.num_shared, "experts that every token uses");
  add("--expert-scaling", options.scaling, "exact, or paper (all matrices by a cube root: near)")
      ->check(CLI::IsMember({"exact", "paper"}));
  add("--router", options.router, "score of an expert")
      ->check(CLI::IsMember({"softmax", "sigmoid"}));
  add("--router-deviation", options.upcycle.router_deviation,
      "standard deviation of the first router logits");
  add("--moe-layers", options.layers, "layers to change, from 0, as 3,5,7 (default: all)");
  add("--seed", options.upcycle.seed, "of the routers");
  command
      .add_flag("--no-check", options.no_check, "do not compare with the dense model afterwards")
      ->group(kGroup);
}

}  // namespace

void add_convert(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("convert", "write a model as a GGUF file, or as a mixture of experts");
  auto options = std::make_shared<ConvertOptions>();
  command
      ->add_option("source", options->source, "GGUF file, or folder with config.json and weights")
      ->required()
      ->type_name("MODEL");
  command->add_option("-o,--output", options->output, "file to write")->required();
  command->add_option("--format", options->format,
                      "f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1 (default: as in the source)");
  command->add_option("--embedding-format", options->embedding_format,
                      "for the embedding table (default: q8_0 when --format is smaller)");
  command->add_flag("--force", options->force, "replace an existing file");
  add_upcycling(*command, *options);
  command->footer(
      "Reads model types gla_swa (SpikingBrain), qwen2 and llama from safetensors or PyTorch "
      "files, and GGUF files.\n"
      "Examples:\n"
      "  spb convert SpikingBrain-7B -o spikingbrain-7b.gguf --format q8_0\n"
      "  spb convert model.gguf -o moe.gguf --experts 16 --shared-experts 1");
  command->callback([options] { run_convert(*options); });
}

}  // namespace spb::cli
