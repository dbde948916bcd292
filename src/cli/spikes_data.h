// What spb spikes found, for programs: JSON and CSV. docs/spiking.md describes both.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cli/spikes_run.h"

namespace spb::cli {

// Figures, histogram and name of every group; energy; the sweep.
nlohmann::json to_json(const SpikesReport& report, const Grouping& grouping);

// One line for each k and group: k, perplexity, standard_error, layer, site, class, every figure.
std::string to_csv(const SpikesReport& report, const Grouping& grouping);

}  // namespace spb::cli
