// What spb experts found: a table for people, JSON and CSV for programs, a picture.
// docs/experts.md describes the figures.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cli/experts_loads.h"
#include "view/svg.h"
#include "view/table.h"

namespace spb::cli {

// A row for each layer.
view::Table load_table(const ExpertsReport& report);

nlohmann::json to_json(const ExpertsReport& report);

// A line for each layer and expert: layer, expert, choices, load_share, mean_score.
std::string to_csv(const ExpertsReport& report);

// Layers by experts, loads over their mean.
view::Svg load_picture(const ExpertsReport& report);

}  // namespace spb::cli
