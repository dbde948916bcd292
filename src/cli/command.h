// The subcommands of spb: each adds itself to the command line in a file of its own.
#pragma once

#include <CLI/CLI.hpp>

namespace spb::cli {

void add_run(CLI::App& app);
void add_chat(CLI::App& app);
void add_convert(CLI::App& app);
void add_quantize(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_inspect(CLI::App& app);
void add_perplexity(CLI::App& app);
void add_spikes(CLI::App& app);
void add_experts(CLI::App& app);
void add_bench(CLI::App& app);
void add_synth(CLI::App& app);
void add_completion(CLI::App& app);

}  // namespace spb::cli
