// Options that several commands share, and what they are turned into.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "core/context.h"
#include "engine/text_model.h"
#include "model/activity.h"
#include "model/state.h"
#include "ops/sampling/sampling.h"

namespace spb::cli {

// MODEL, --threads, --device, --activations, --no-repack, --experts, --profile, --k-site,
// --event-driven,
// --verify-spikes.
struct ModelOptions {
  std::string path;
  int threads = 0;
  std::string device = "cpu";
  std::string activations = "auto";
  bool no_repack = false;
  std::string experts = "auto";
  std::string profile = "exact-int";
  std::string site_k;
  bool event_driven = false;
  bool verify_spikes = false;

  void add_to(CLI::App& command, bool model_required = true);
  // Usage error for a device that is not there, or has no such activations.
  Context make_context() const;
  model::LoadOptions load_options() const;
  model::ForwardHooks hooks() const { return {nullptr, verify_spikes, nullptr}; }
};

// --context, --chunk, --cache-type.
struct StateFlags {
  std::string context;  // tokens, with k or M as suffix; empty: what the model was trained for
  int64_t chunk = 1024;
  std::string cache_type = "auto";

  void add_to(CLI::App& command);
  model::StateOptions state_options() const;
};

// --temperature and its relatives.
struct SamplingFlags {
  ops::SamplingSettings settings;
  std::vector<std::string> logit_bias;  // ID=VALUE
  bool seed_given = false;

  void add_to(CLI::App& command);
  // The settings, with logit biases parsed; without --seed a random seed is drawn.
  ops::SamplingSettings resolve() const;
};

// --prompt or --file, or standard input when neither is given and it is not a terminal.
struct TextInput {
  std::string prompt;
  std::string file;
  bool prompt_given = false;

  void add_to(CLI::App& command);
  std::string read() const;  // usage error when there is nothing to read
};

// "4096", "256k" or "1M" (1k = 1024). Usage error naming `option`.
int64_t parse_count(const std::string& text, const std::string& option);
std::vector<int64_t> parse_counts(const std::string& list, const std::string& option);

// A dtype that weights can be written in. Usage error naming `option` and the choices.
DType parse_weight_format(const std::string& text, const std::string& option);

// The whole content of a file; "-" is standard input. System error naming the file.
std::string read_file(const std::string& path);

std::string format_bytes(int64_t bytes);  // "1.21 GiB"
std::string format_count(int64_t count);  // "1.24 B", "135 M"

}  // namespace spb::cli
