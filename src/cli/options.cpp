#include "cli/options.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <sstream>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/progress.h"

namespace spb::cli {
namespace {

// "151645=-1.5": forbids nothing, moves one logit; -inf forbids.
std::pair<int32_t, float> parse_bias(const std::string& text) {
  const size_t equals = text.find('=');
  const std::string id_text = text.substr(0, equals);
  const std::string value_text = equals == std::string::npos ? "" : text.substr(equals + 1);
  int32_t id = 0;
  const char* end = id_text.data() + id_text.size();
  const auto parsed = std::from_chars(id_text.data(), end, id);
  char* value_end = nullptr;
  const float value = std::strtof(value_text.c_str(), &value_end);
  check(parsed.ec == std::errc{} && parsed.ptr == end && !value_text.empty() &&
            *value_end == '\0' && !std::isnan(value),
        "--logit-bias: expected ID=VALUE, got '{}'", printable(text));
  return {id, value};
}

}  // namespace

void ModelOptions::add_to(CLI::App& command, bool model_required) {
  command.add_option("model", path, "GGUF file, or folder of a Hugging Face model")
      ->required(model_required)
      ->type_name("MODEL");
  command.add_option("-t,--threads", threads, "compute threads (default: all processors)")
      ->check(CLI::Range(1, 1024));
  command.add_option("--device", device, "cpu, cuda, cuda:N, or auto: a CUDA device if usable")
      ->type_name("DEVICE")
      ->capture_default_str();
  command
      .add_option("--activations", activations,
                  "values between operators on a CUDA device; auto is bf16, f32 is for comparisons")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->capture_default_str();
  command.add_flag("--no-repack", no_repack,
                   "use mapped weights as they are (for files larger than memory)");
  command
      .add_option("--experts", experts,
                  "weights of routed experts: copy them, leave them mapped, or copy while they fit "
                  "into half of the free memory")
      ->check(CLI::IsMember({"auto", "copy", "map"}))
      ->capture_default_str();
  const char* spiking = "Spiking models";
  command
      .add_option("--profile", profile,
                  "integer products, the values of the reference, or the report's (feed-forward "
                  "outputs are spikes too)")
      ->group(spiking)
      ->check(CLI::IsMember({"exact-int", "reference", "report"}))
      ->capture_default_str();
  command
      .add_option("--k-site", site_k,
                  "another k than the model's: ffn_in=4.5,query=off,0-3:all=6 (off: no spikes)")
      ->group(spiking)
      ->type_name("[LAYERS:]SITE=K,..");
  command
      .add_flag("--event-driven", event_driven,
                "keep weights by input channel too, where that may pay: one token then reads only "
                "those of firing channels if enough are silent; up to twice the memory")
      ->group(spiking);
  command
      .add_flag("--verify-spikes", verify_spikes,
                "execute every product once more as a spike train, with additions alone (slow)")
      ->group(spiking);
}

Context ModelOptions::make_context() const {
  const Device place = parse_device(device);
  check(place.is_cuda() || activations != "bf16",
        "--activations: bf16: expected a CUDA device, got --device {}", printable(device));
  return Context(place, threads,
                 place.is_cuda() && activations != "f32" ? DType::kBF16 : DType::kF32);
}

model::LoadOptions ModelOptions::load_options() const {
  model::LoadOptions options;
  options.repack = !no_repack;
  if (experts == "copy") options.experts = model::Residency::kCopied;
  if (experts == "map") options.experts = model::Residency::kMapped;
  if (profile == "reference") options.profile = model::SpikeProfile::kReference;
  if (profile == "report") options.profile = model::SpikeProfile::kReport;
  options.site_k = model::parse_site_rules(site_k, "--k-site");
  options.event_driven = event_driven;
  return options;
}

void StateFlags::add_to(CLI::App& command) {
  command
      .add_option("-c,--context", context,
                  "room for this many tokens, e.g. 32k (default: the model's own; layers "
                  "without full attention need none)")
      ->type_name("TOKENS");
  command.add_option("--chunk", chunk, "prompt tokens per step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      .add_option("--cache-type", cache_type,
                  "keys and values as floats, or as i8 with a scale for each head of a position; "
                  "auto is i8 in spiking models, else f16")
      ->check(CLI::IsMember({"auto", "f32", "f16", "bf16", "i8"}))
      ->capture_default_str();
}

model::StateOptions StateFlags::state_options() const {
  model::StateOptions options;
  if (!context.empty()) options.max_context = parse_count(context, "--context");
  options.max_chunk = chunk;
  options.cache_dtype = parse_dtype(cache_type);  // none for auto
  return options;
}

void SamplingFlags::add_to(CLI::App& command) {
  const char* group = "Sampling";
  settings.temperature = 0.8f;
  settings.top_p = 0.95f;
  settings.top_k = 40;
  const auto add = [&](const char* name, auto& value, const char* help) {
    command.add_option(name, value, help)->group(group)->capture_default_str();
  };
  add("--temperature", settings.temperature, "0 is greedy");
  add("--top-k", settings.top_k, "keep the k most probable tokens; 0 is off");
  add("--top-p", settings.top_p, "keep the smallest set of this probability; 1 is off");
  add("--min-p", settings.min_p, "drop tokens below this share of the best; 0 is off");
  add("--repetition-penalty", settings.repetition_penalty, "1 is off");
  add("--frequency-penalty", settings.frequency_penalty, "0 is off");
  add("--presence-penalty", settings.presence_penalty, "0 is off");
  add("--penalty-window", settings.penalty_window, "last tokens the penalties see; 0 is all");
  command.add_option("--logit-bias", logit_bias, "add to a logit: ID=VALUE, -inf forbids it")
      ->group(group)
      ->type_name("ID=VALUE");
  command
      .add_option_function<uint64_t>(
          "--seed",
          [this](uint64_t seed) {
            settings.seed = seed;
            seed_given = true;
          },
          "for the same text again (default: a new one each time)")
      ->group(group);
}

ops::SamplingSettings SamplingFlags::resolve() const {
  ops::SamplingSettings resolved = settings;
  for (const std::string& text : logit_bias) resolved.logit_bias.insert(parse_bias(text));
  if (!seed_given) resolved.seed = std::random_device{}();
  ops::check_sampling_settings(resolved);
  return resolved;
}

void TextInput::add_to(CLI::App& command) {
  command
      .add_option_function<std::string>(
          "-p,--prompt",
          [this](const std::string& text) {
            prompt = text;
            prompt_given = true;
          },
          "the text")
      ->type_name("TEXT");
  command.add_option("-f,--file", file, "read the text from a file; - is standard input")
      ->type_name("FILE");
}

std::string TextInput::read() const {
  check(!prompt_given || file.empty(), "--prompt and --file: expected one of them, got both");
  if (prompt_given) return prompt;
  if (!file.empty()) return read_file(file);
  check(!is_terminal(stdin), "text: expected --prompt, --file, or text on standard input");
  return read_file("-");
}

int64_t parse_count(const std::string& text, const std::string& option) {
  int64_t count = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, count);
  const std::string_view suffix(rest, static_cast<size_t>(end - rest));
  const int64_t unit = suffix.empty()                   ? 1
                       : suffix == "k" || suffix == "K" ? 1 << 10
                       : suffix == "m" || suffix == "M" ? 1 << 20
                                                        : 0;
  check(error == std::errc{} && unit > 0 && count >= 0 && count <= (int64_t{1} << 40) / unit,
        "{}: expected a number of tokens such as 4096, 256k or 1M, got '{}'", option,
        printable(text));
  return count * unit;
}

std::vector<int64_t> parse_counts(const std::string& list, const std::string& option) {
  std::vector<int64_t> counts;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) counts.push_back(parse_count(item, option));
  check(!counts.empty(), "{}: expected numbers separated by commas, got '{}'", option,
        printable(list));
  return counts;
}

DType parse_weight_format(const std::string& text, const std::string& option) {
  const std::optional<DType> format = parse_dtype(text);
  check(format.has_value() && can_quantize(*format),
        "{}: expected f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 or q5_1, got '{}'", option,
        printable(text));
  return *format;
}

std::string read_file(const std::string& path) {
  if (path == "-") {
    return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) throw_system_error(path);
  std::ostringstream out;
  out << in.rdbuf();
  if (!in) throw_system_error(path);
  return out.str();
}

std::string format_bytes(int64_t bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.{}f} {}", value, unit == 0 ? 0 : 2, kUnits[unit]);
}

std::string format_count(int64_t count) {
  if (count >= 1'000'000'000) return fmt::format("{:.2f} B", static_cast<double>(count) / 1e9);
  if (count >= 1'000'000) return fmt::format("{:.1f} M", static_cast<double>(count) / 1e6);
  return fmt::format("{}", count);
}

}  // namespace spb::cli
