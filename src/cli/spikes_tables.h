// The tables of spb spikes, for the terminal and for the HTML report.
#pragma once

#include <span>
#include <vector>

#include "cli/spikes_run.h"
#include "view/table.h"

namespace spb::cli {

// "layer 3", "mixer_in, first", "all".
std::string group_name(const spike::SiteKey& key);

// How many entries are silent, small, large; spikes per entry.
view::Table count_table(const std::string& title, const spike::SiteStatistics& groups);
// Every kind of sparsity and firing rate, by its name.
view::Table sparsity_table(const std::string& title, const spike::SiteStatistics& groups);
// Every figure of every group: a row each, at most six groups a table.
std::vector<view::Table> figure_tables(const spike::SiteStatistics& groups);

// Candidates for what the press calls 1.85 % active spikes, and which are of that order.
view::Table active_table(const spike::SiteStatistics& all);

view::Table sweep_table(std::span<const SpikeRun> runs);

// Microjoules per token, weights shared by the tokens of a call or fetched for each.
view::Table energy_table(const EnergyReport& energy, bool together);
// Products, additions, and what is counted as what.
view::Table operations_table(const EnergyReport& energy);

}  // namespace spb::cli
