#include "cli/experts_output.h"

#include <fmt/format.h>

#include <algorithm>

#include "ops/moe/moe_dispatch.h"
#include "view/pictures.h"

namespace spb::cli {
namespace {

// Of more experts a line of the table would not fit a terminal.
constexpr int64_t kDrawnExperts = 32;

// A character for each expert, by its load over the mean load: "." below a quarter, a digit for
// the multiple, "+" from 9.5 on; a blank for an unused one.
std::string loads_as_text(const LayerLoads& loads) {
  std::string text;
  const auto count = static_cast<double>(loads.assigned.size());
  for (size_t e = 0; e < loads.assigned.size(); ++e) {
    const double multiple = count * ops::load_share(loads.assigned, static_cast<int64_t>(e));
    if (loads.assigned[e] == 0) {
      text += ' ';
    } else if (multiple < 0.5) {
      text += multiple < 0.25 ? '.' : ':';
    } else {
      text += multiple < 9.5 ? static_cast<char>('0' + static_cast<int>(multiple + 0.5)) : '+';
    }
  }
  return "|" + text + "|";
}

std::string expert_and_share(const LayerLoads& loads, int64_t expert) {
  return fmt::format("{}: {:.1f} %", expert, 100 * ops::load_share(loads.assigned, expert));
}

std::string score_name(ops::RouterScore score) {
  return score == ops::RouterScore::kSoftmax ? "softmax" : "sigmoid";
}

double mean_score(const LayerLoads& loads, size_t expert) {
  return loads.score_sums[expert] / static_cast<double>(loads.tokens);
}

nlohmann::json layer_json(const LayerLoads& loads) {
  const LoadFigures figures = load_figures(loads);
  nlohmann::json shares = nlohmann::json::array();
  nlohmann::json scores = nlohmann::json::array();
  for (size_t e = 0; e < loads.assigned.size(); ++e) {
    shares.push_back(ops::load_share(loads.assigned, static_cast<int64_t>(e)));
    scores.push_back(mean_score(loads, e));
  }
  return {{"layer", loads.layer},
          {"tokens", loads.tokens},
          {"choices", loads.assigned},
          {"load_share", shares},
          {"mean_score", scores},
          {"hottest", figures.hottest},
          {"coldest", figures.coldest},
          {"unused", figures.unused},
          {"imbalance", figures.imbalance},
          {"entropy", figures.entropy},
          {"effective_experts", figures.effective},
          {"mean_probability", figures.mean_probability},
          {"balance_loss", figures.balance_loss}};
}

}  // namespace

view::Table load_table(const ExpertsReport& report) {
  const bool drawn = report.moe.num_experts <= kDrawnExperts;
  view::Table table{"Loads of the experts",
                    {"layer", "hottest", "coldest", "unused", "max/mean", "entropy, bits",
                     "effective", "probability", "balance loss"},
                    {},
                    "max/mean: 1 is balanced. effective: as many experts with equal loads are as "
                    "mixed.\nprobability: mean of the chosen. balance loss: n sum f P.\n"};
  if (drawn) {
    table.columns.emplace_back("load of each expert");
    table.note += "load: multiple of the mean; : below 0.5, . below 0.25, + from 9.5 on, blank 0\n";
  }
  for (const LayerLoads& loads : report.layers) {
    const LoadFigures figures = load_figures(loads);
    table.rows.push_back(
        {std::to_string(loads.layer), expert_and_share(loads, figures.hottest),
         expert_and_share(loads, figures.coldest), std::to_string(figures.unused),
         fmt::format("{:.2f}", figures.imbalance), fmt::format("{:.2f}", figures.entropy),
         fmt::format("{:.1f}", figures.effective), fmt::format("{:.3f}", figures.mean_probability),
         fmt::format("{:.3f}", figures.balance_loss)});
    if (drawn) table.rows.back().push_back(loads_as_text(loads));
  }
  return table;
}

nlohmann::json to_json(const ExpertsReport& report) {
  nlohmann::json layers = nlohmann::json::array();
  for (const LayerLoads& loads : report.layers) layers.push_back(layer_json(loads));
  return {{"model", report.model},
          {"tokens", report.tokens},
          {"window", report.window},
          {"perplexity", report.perplexity.value()},
          {"experts", report.moe.num_experts},
          {"experts_per_token", report.moe.experts_per_token},
          {"shared_experts", report.moe.num_shared},
          {"score", score_name(report.moe.score)},
          {"layers", layers}};
}

std::string to_csv(const ExpertsReport& report) {
  std::string csv = "layer,expert,choices,load_share,mean_score\n";
  for (const LayerLoads& loads : report.layers) {
    for (size_t e = 0; e < loads.assigned.size(); ++e) {
      csv += fmt::format("{},{},{},{},{}\n", loads.layer, e, loads.assigned[e],
                         ops::load_share(loads.assigned, static_cast<int64_t>(e)),
                         mean_score(loads, e));
    }
  }
  return csv;
}

view::Svg load_picture(const ExpertsReport& report) {
  view::HeatMap map{"Loads of the experts", "times the mean", {}, {}, "expert", {}};
  const auto count = static_cast<double>(report.moe.num_experts);
  for (int64_t e = 0; e < report.moe.num_experts; ++e) map.columns.push_back(std::to_string(e));
  for (const LayerLoads& loads : report.layers) {
    map.rows.push_back(fmt::format("layer {}", loads.layer));
    for (int64_t e = 0; e < report.moe.num_experts; ++e) {
      map.values.emplace_back(count * ops::load_share(loads.assigned, e));
    }
  }
  return view::draw_heat_map(map);
}

}  // namespace spb::cli
