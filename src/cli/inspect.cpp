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
#include "model/open_model.h"

namespace spb::cli {
namespace {

struct InspectOptions {
  std::string path;
  std::string preset;
  StateFlags state;
  bool tensors = false;
  bool metadata = false;
  bool json = false;
};

// Without a source when it is a preset.
model::OpenModel open_model(const InspectOptions& options) {
  check(options.path.empty() != options.preset.empty(),
        "inspect: expected either MODEL or --preset");
  if (!options.path.empty()) return model::open_model(options.path);
  model::OpenModel found;
  found.config = model::preset(options.preset);
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

// One column for each layer, one row for each kind of mixer and network: '#' where a layer has it.
void print_layers(const model::ModelConfig& config) {
  const auto print_row = [&](std::string_view label, const auto& has) {
    std::string marks;
    for (const model::LayerConfig& layer : config.layers) marks += has(layer) ? '#' : '.';
    if (marks.find('#') != std::string::npos) fmt::print("    {:<13} {}\n", label, marks);
  };
  std::string ruler;
  for (int64_t layer = 1; layer <= config.num_layers(); layer += 10) {
    ruler += fmt::format("{:<10}", layer);
  }
  fmt::print("    {:<13} {}\n", "layer", ruler);
  for (const model::Mixer mixer :
       {model::Mixer::kLinear, model::Mixer::kWindow, model::Mixer::kFull}) {
    print_row(name(mixer), [&](const model::LayerConfig& layer) { return layer.has(mixer); });
  }
  for (const auto& [network, label] : {std::pair(model::FeedForward::kDense, "dense network"),
                                       std::pair(model::FeedForward::kMoe, "experts")}) {
    print_row(label, [n = network](const model::LayerConfig& l) { return l.feed_forward == n; });
  }
}

void print_family(const model::ModelConfig& c) {
  if (c.any_parallel()) {
    fmt::print("  parallel        mixers of a layer share its projections; {} branch weights\n",
               c.branch_weights_learned ? "learned" : "fixed");
  }
  if (c.layers_with(model::FeedForward::kMoe) > 0) {
    const bool softmax = c.moe.score == ops::RouterScore::kSoftmax;
    fmt::print("  experts         {} of width {}, {} chosen by {}, and {} shared\n",
               c.moe.num_experts, c.moe.expert_size, c.moe.experts_per_token,
               softmax ? "softmax" : "sigmoid", c.moe.num_shared);
  }
  if (c.layers_with(model::Mixer::kLinear) > 0) {
    fmt::print(
        "  linear          feature map {}, gate {}\n", name(c.feature_map),
        c.tied_gate ? std::string("tied to the key") : fmt::format("of rank {}", c.gate_low_rank));
  }
  if (c.layers_with(model::Mixer::kWindow) > 0) {
    fmt::print("  window          {} positions\n", c.window_size);
  }
  if (c.sink_tokens > 0) fmt::print("  sinks           {} learned tokens\n", c.sink_tokens);
}

void print_parameters(const model::ModelConfig& config) {
  const model::ParameterCount count = model::count_parameters(config);
  fmt::print("  parameters      {}", format_count(count.total));
  if (count.active < count.total) fmt::print(", {} active per token", format_count(count.active));
  fmt::print("\n");
}

void print_weights(const io::TensorSource& source) {
  fmt::print("  weights         {}", format_bytes(total_bytes(source)));
  for (const auto& [format, bytes] : bytes_by_format(source)) {
    fmt::print("  {} {}", format, format_bytes(bytes));
  }
  fmt::print("\n");
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

void print_metadata(const model::OpenModel& found) {
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

void print_memory(const model::OpenModel& found, const InspectOptions& options) {
  const model::StateOptions state = options.state.state_options();
  const int64_t context = state.max_context > 0 ? state.max_context : 4096;
  fmt::print("\nMemory of one sequence (cache {})\n",
             name(model::cache_dtype(found.config, state)));
  fmt::print("  {:>12} {:>12} {:>12} {:>12} {:>12}\n", "context", "linear", "window", "full",
             "total");
  for (const int64_t tokens : std::set<int64_t>{4096, 32768, 262144, context}) {
    const model::StateBytes bytes = model::state_bytes(found.config, state, tokens);
    fmt::print("  {:>12} {:>12} {:>12} {:>12} {:>12}\n", tokens, format_bytes(bytes.recurrent),
               format_bytes(bytes.window), format_bytes(bytes.full), format_bytes(bytes.total()));
  }
}

void print_text(const model::OpenModel& found, const InspectOptions& options) {
  const model::ModelConfig& c = found.config;
  fmt::print("{}\n", found.source ? options.path : "preset");
  fmt::print("  name            {}\n", c.name.empty() ? "-" : printable(c.name));
  fmt::print("  architecture    {}\n", c.architecture);
  print_parameters(c);
  if (found.source) print_weights(*found.source);
  fmt::print("  hidden          {}, feed-forward {}\n", c.hidden_size, c.intermediate_size);
  fmt::print("  heads           {} query, {} key/value, dimension {}\n", c.num_heads,
             c.num_kv_heads, c.head_dim);
  fmt::print("  vocabulary      {}{}\n", c.vocab_size, c.tied_embeddings ? ", tied head" : "");
  fmt::print("  context         {} in training\n", c.context_length);
  print_family(c);
  fmt::print("  layers          {}: {} linear, {} window, {} full\n", c.num_layers(),
             c.layers_with(model::Mixer::kLinear), c.layers_with(model::Mixer::kWindow),
             c.layers_with(model::Mixer::kFull));
  print_layers(c);
  print_memory(found, options);
  if (options.metadata) print_metadata(found);
  if (options.tensors && found.source) print_tensors(*found.source);
}

nlohmann::json layers_json(const model::ModelConfig& config) {
  nlohmann::json layers = nlohmann::json::array();
  for (const model::LayerConfig& layer : config.layers) {
    nlohmann::json mixers = nlohmann::json::array();
    for (const model::Mixer mixer : layer.mixers) mixers.push_back(std::string(name(mixer)));
    layers.push_back({{"mixers", mixers}, {"feed_forward", std::string(name(layer.feed_forward))}});
  }
  return layers;
}

nlohmann::json experts_json(const model::MoeConfig& moe) {
  return {{"routed", moe.num_experts},
          {"per_token", moe.experts_per_token},
          {"shared", moe.num_shared},
          {"size", moe.expert_size}};
}

nlohmann::json to_json(const model::OpenModel& found, const InspectOptions& options) {
  const model::ModelConfig& c = found.config;
  const model::StateOptions state = options.state.state_options();
  const int64_t context = state.max_context > 0 ? state.max_context : 4096;
  const model::StateBytes bytes = model::state_bytes(c, state, context);
  const model::ParameterCount parameters = model::count_parameters(c);
  nlohmann::json json = {{"name", printable(c.name)},
                         {"architecture", c.architecture},
                         {"parameters", parameters.total},
                         {"active_parameters", parameters.active},
                         {"hidden_size", c.hidden_size},
                         {"intermediate_size", c.intermediate_size},
                         {"num_heads", c.num_heads},
                         {"num_kv_heads", c.num_kv_heads},
                         {"head_dim", c.head_dim},
                         {"vocab_size", c.vocab_size},
                         {"context_length", c.context_length},
                         {"layers", layers_json(c)},
                         {"window_size", c.window_size},
                         {"sink_tokens", c.sink_tokens},
                         {"state",
                          {{"cache", std::string(name(model::cache_dtype(c, state)))},
                           {"context", context},
                           {"linear_bytes", bytes.recurrent},
                           {"window_bytes", bytes.window},
                           {"full_bytes", bytes.full}}}};
  if (c.moe.num_experts > 0) json["experts"] = experts_json(c.moe);
  if (found.source) {
    json["weight_bytes"] = total_bytes(*found.source);
    json["weight_bytes_by_format"] = bytes_by_format(*found.source);
  }
  return json;
}

void inspect(const InspectOptions& options) {
  const model::OpenModel found = open_model(options);
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
      ->type_name("MODEL");
  command->add_option("--preset", options->preset,
                      fmt::format("a published shape instead of a file: {}",
                                  fmt::join(model::preset_names(), ", ")));
  options->state.add_to(*command);
  command->add_flag("--metadata", options->metadata, "all metadata");
  command->add_flag("--tensors", options->tensors, "all tensors");
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "Examples:\n"
      "  spb inspect model.gguf --context 256k\n"
      "  spb inspect --preset spikingbrain-76b");
  command->callback([options] { inspect(*options); });
}

}  // namespace spb::cli
