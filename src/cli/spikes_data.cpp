#include "cli/spikes_data.h"

#include <fmt/format.h>

namespace spb::cli {
namespace {

using nlohmann::json;

json figures_json(const spike::SpikeStatistics& statistics) {
  const spike::SpikeFigures figures = statistics.figures();
  json out = json::object();
  for (const spike::FigureField& field : spike::figure_fields()) {
    out[std::string(field.name)] = figures.*field.value;
  }
  return out;
}

// Entries with |count| = 0, 1, ... up to the last one there is.
json histogram_json(const spike::SpikeStatistics& statistics) {
  json bins = json::array();
  int last = spike::SpikeStatistics::kBins - 1;
  while (last >= 0 && statistics.histogram(last) == 0) --last;
  for (int count = 0; count <= last; ++count) bins.push_back(statistics.histogram(count));
  return bins;
}

json group_json(const spike::SiteKey& key, const spike::SpikeStatistics& statistics) {
  json out = {{"rows", statistics.rows()},
              {"channels", statistics.channels()},
              {"figures", figures_json(statistics)},
              {"histogram", histogram_json(statistics)},
              {"beyond_histogram", statistics.tail()}};
  if (key.layer >= 0) out["layer"] = key.layer;
  if (!key.site.empty()) out["site"] = key.site;
  if (!key.token_class.empty()) out["class"] = key.token_class;
  return out;
}

json energy_json(const spike::Energy& energy, int64_t tokens) {
  const auto n = static_cast<double>(tokens);
  return {{"compute", energy.compute / n}, {"memory", energy.memory / n}};
}

json site_energy_json(const spike::SiteEnergy& energy, int64_t tokens) {
  return {{"executed", energy_json(energy.executed, tokens)},
          {"int8_dense", energy_json(energy.int8_dense, tokens)},
          {"fp16_dense", energy_json(energy.fp16_dense, tokens)}};
}

json report_json(const EnergyReport& energy) {
  json parts = json::array();
  const auto n = static_cast<double>(energy.tokens);
  for (const EnergyPart& part : energy.parts) {
    parts.push_back({{"part", part.name},
                     {"executed_as", part.execution},
                     {"products", part.together.products / n},
                     {"synaptic_operations", part.together.synaptic_operations / n},
                     {"together", site_energy_json(part.together, energy.tokens)},
                     {"alone", site_energy_json(part.alone, energy.tokens)}});
  }
  return {{"estimate", true}, {"unit", "picojoules per token"}, {"parts", parts}};
}

json run_json(const SpikeRun& run) {
  return {{"k", run.k},
          {"perplexity", run.perplexity.value()},
          {"standard_error", run.perplexity.standard_error()},
          {"predictions", run.perplexity.predictions},
          {"figures", figures_json(pool_all(run.statistics))}};
}

void append_rows(std::string& csv, const SpikeRun& run, const Grouping& grouping) {
  for (const auto& [key, statistics] : group_by(run.statistics, grouping)) {
    csv += fmt::format(
        "{},{},{},{},{},{}", run.k, run.perplexity.value(), run.perplexity.standard_error(),
        key.layer >= 0 ? fmt::to_string(key.layer) : "all", key.site.empty() ? "all" : key.site,
        key.token_class.empty() ? "all" : key.token_class);
    const spike::SpikeFigures figures = statistics.figures();
    for (const spike::FigureField& field : spike::figure_fields()) {
      csv += fmt::format(",{}", figures.*field.value);
    }
    csv += '\n';
  }
}

}  // namespace

json to_json(const SpikesReport& report, const Grouping& grouping) {
  json out = run_json(report.run);
  out["model"] = printable(report.model, 4096);
  out["profile"] = report.profile;
  out["tokens"] = report.tokens;
  out["window"] = report.window;
  out["energy"] = report_json(report.run.energy);
  out["groups"] = json::array();
  for (const auto& [key, statistics] : group_by(report.run.statistics, grouping)) {
    out["groups"].push_back(group_json(key, statistics));
  }
  for (const SpikeRun& run : report.sweep) out["sweep"].push_back(run_json(run));
  return out;
}

std::string to_csv(const SpikesReport& report, const Grouping& grouping) {
  std::string csv = "k,perplexity,standard_error,layer,site,class";
  for (const spike::FigureField& field : spike::figure_fields()) {
    csv += fmt::format(",{}", field.name);
  }
  csv += '\n';
  append_rows(csv, report.run, grouping);
  for (const SpikeRun& run : report.sweep) {
    if (run.k != report.run.k) append_rows(csv, run, grouping);
  }
  return csv;
}

}  // namespace spb::cli
