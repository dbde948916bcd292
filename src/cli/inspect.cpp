// spb inspect: what is in a model file, and what it needs to run.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/command.h"
#include "cli/options.h"
#include "core/error.h"
#include "io/checkpoint.h"
#include "model/config_gguf.h"
#include "model/config_hugging_face.h"

namespace spb::cli {
namespace {

struct InspectOptions {
  std::string path;
  StateFlags state;
  bool tensors = false;
  bool metadata = false;
  bool json = false;
};

struct Inspected {
  model::ModelConfig config;
  std::shared_ptr<const io::TensorSource> source;
  const io::GgufMetadata* metadata = nullptr;
};

Inspected open_model(const std::string& path) {
  Inspected found;
  if (io::is_gguf(path)) {
    std::shared_ptr<const io::GgufFile> file = io::GgufFile::open(path);
    found.config = model::config_from_gguf(*file);
    found.metadata = &file->metadata();
    found.source = std::move(file);
  } else {
    found.source = io::open_checkpoint_folder(path);
    found.config = model::config_from_hugging_face(path, *found.source).config;
  }
  return found;
}

std::map<std::string, int64_t> bytes_by_format(const io::TensorSource& source) {
  std::map<std::string, int64_t> bytes;
  for (const io::TensorEntry& entry : source.tensors()) {
    bytes[std::string(name(entry.view.dtype()))] += entry.view.bytes();
  }
  return bytes;
}

int64_t total_bytes(const io::TensorSource& source) {
  int64_t total = 0;
  for (const io::TensorEntry& entry : source.tensors()) total += entry.view.bytes();
  return total;
}

// One letter for each layer, first to last.
std::string layer_picture(const model::ModelConfig& config) {
  std::string line;
  for (const model::Mixer mixer : config.mixers) {
    line += mixer == model::Mixer::kFull ? 'F' : mixer == model::Mixer::kWindow ? 'W' : 'L';
  }
  return line;
}

struct ValuePrinter {
  std::string operator()(int64_t v) const { return fmt::format("{}", v); }
  std::string operator()(uint64_t v) const { return fmt::format("{}", v); }
  std::string operator()(double v) const { return fmt::format("{:g}", v); }
  std::string operator()(bool v) const { return v ? "true" : "false"; }
  std::string operator()(const std::string& v) const { return '"' + printable(v, 80) + '"'; }
  std::string operator()(const io::GgufArray& array) const {
    return std::visit(
        [](const auto& values) {
          using Element = typename std::decay_t<decltype(values)>::value_type;
          std::string text = fmt::format("[{} values:", values.size());
          for (size_t i = 0; i < values.size() && i < 6; ++i) {
            text += ' ' + ValuePrinter()(static_cast<Element>(values[i]));
          }
          return text + (values.size() > 6 ? " ...]" : "]");
        },
        array);
  }
};

void print_metadata(const Inspected& found) {
  if (found.metadata == nullptr) return;
  fmt::print("\nMetadata\n");
  for (const io::GgufEntry& entry : found.metadata->entries()) {
    fmt::print("  {:<44} {}\n", printable(entry.key), std::visit(ValuePrinter(), entry.value));
  }
}

void print_tensors(const io::TensorSource& source) {
  fmt::print("\nTensors\n");
  for (const io::TensorEntry& entry : source.tensors()) {
    fmt::print("  {:<44} {:<5} {}\n", printable(entry.name), name(entry.view.dtype()),
               entry.view.shape().to_string());
  }
}

void print_memory(const Inspected& found, const InspectOptions& options) {
  const model::StateOptions state = options.state.state_options();
  const int64_t context = state.max_context > 0 ? state.max_context : 4096;
  fmt::print("\nMemory of one sequence (cache {})\n", options.state.cache_type);
  fmt::print("  {:>12} {:>12} {:>12} {:>12} {:>12}\n", "context", "linear", "window", "full",
             "total");
  for (const int64_t tokens : std::set<int64_t>{4096, 32768, 262144, context}) {
    const model::StateBytes bytes = model::state_bytes(found.config, state, tokens);
    fmt::print("  {:>12} {:>12} {:>12} {:>12} {:>12}\n", tokens, format_bytes(bytes.recurrent),
               format_bytes(bytes.window), format_bytes(bytes.full), format_bytes(bytes.total()));
  }
}

void print_text(const Inspected& found, const InspectOptions& options) {
  const model::ModelConfig& c = found.config;
  fmt::print("{}\n", options.path);
  fmt::print("  name            {}\n", c.name.empty() ? "-" : printable(c.name));
  fmt::print("  architecture    {}\n", c.architecture);
  fmt::print("  parameters      {}\n", format_count(model::parameter_count(c)));
  fmt::print("  weights         {}", format_bytes(total_bytes(*found.source)));
  for (const auto& [format, bytes] : bytes_by_format(*found.source)) {
    fmt::print("  {} {}", format, format_bytes(bytes));
  }
  fmt::print("\n  hidden          {}, feed-forward {}\n", c.hidden_size, c.intermediate_size);
  fmt::print("  heads           {} query, {} key/value, dimension {}\n", c.num_heads,
             c.num_kv_heads, c.head_dim);
  fmt::print("  vocabulary      {}{}\n", c.vocab_size, c.tied_embeddings ? ", tied head" : "");
  fmt::print("  context         {} in training\n", c.context_length);
  fmt::print("  layers          {}: {} linear, {} window, {} full\n", c.num_layers(),
             c.layers_with(model::Mixer::kLinear), c.layers_with(model::Mixer::kWindow),
             c.layers_with(model::Mixer::kFull));
  fmt::print("                  {}\n", layer_picture(c));
  if (c.window_size > 0) fmt::print("  window          {} positions\n", c.window_size);
  print_memory(found, options);
  if (options.metadata) print_metadata(found);
  if (options.tensors) print_tensors(*found.source);
}

nlohmann::json to_json(const Inspected& found, const InspectOptions& options) {
  const model::ModelConfig& c = found.config;
  const model::StateOptions state = options.state.state_options();
  const int64_t context = state.max_context > 0 ? state.max_context : 4096;
  const model::StateBytes bytes = model::state_bytes(c, state, context);
  nlohmann::json mixers = nlohmann::json::array();
  for (const model::Mixer mixer : c.mixers) mixers.push_back(std::string(model::name(mixer)));
  return {{"name", printable(c.name)},
          {"architecture", c.architecture},
          {"parameters", model::parameter_count(c)},
          {"weight_bytes", total_bytes(*found.source)},
          {"weight_bytes_by_format", bytes_by_format(*found.source)},
          {"hidden_size", c.hidden_size},
          {"intermediate_size", c.intermediate_size},
          {"num_heads", c.num_heads},
          {"num_kv_heads", c.num_kv_heads},
          {"head_dim", c.head_dim},
          {"vocab_size", c.vocab_size},
          {"context_length", c.context_length},
          {"mixers", mixers},
          {"window_size", c.window_size},
          {"state",
           {{"context", context},
            {"linear_bytes", bytes.recurrent},
            {"window_bytes", bytes.window},
            {"full_bytes", bytes.full}}}};
}

void inspect(const InspectOptions& options) {
  const Inspected found = open_model(options.path);
  if (options.json) {
    fmt::print("{}\n", to_json(found, options).dump(2));
  } else {
    print_text(found, options);
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("inspect", "show what is in a model and the memory it needs");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("model", options->path, "GGUF file, or folder of a Hugging Face model")
      ->required()
      ->type_name("MODEL");
  options->state.add_to(*command);
  command->add_flag("--metadata", options->metadata, "all metadata");
  command->add_flag("--tensors", options->tensors, "all tensors");
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "Layers are drawn as L linear, W window, F full attention.\n"
      "Example:\n"
      "  spb inspect model.gguf --context 256k");
  command->callback([options] { inspect(*options); });
}

}  // namespace spb::cli
