// The split as tables, JSON, CSV and a picture.
#include <fmt/format.h>

#include <algorithm>

#include "cli/spikes_split.h"

namespace spb::cli {
namespace {

using nlohmann::json;

std::vector<std::string> cells_of_run(const SplitRun& run) {
  return {fmt::format("{:.4f}", run.perplexity), fmt::format("{:+.2f}", 100 * run.loss.value),
          fmt::format("{:.2f}", 100 * run.loss.standard_error)};
}

void append(std::vector<std::string>& row, const SplitRun& run) {
  for (std::string& cell : cells_of_run(run)) row.push_back(std::move(cell));
}

std::vector<SplitPart> worst_first(std::vector<SplitPart> parts) {
  std::stable_sort(parts.begin(), parts.end(), [](const SplitPart& a, const SplitPart& b) {
    return a.alone.loss.value > b.alone.loss.value;
  });
  return parts;
}

view::Table part_table(const std::string& title, const std::vector<SplitPart>& parts) {
  view::Table table{
      title,
      {"part", "alone: perplexity", "loss %", "+-", "| the rest: perplexity", "loss %", "+-"},
      {},
      "Alone: only this part spikes (keys, values: is rounded). The rest: everything "
      "but it.\nLosses against codes without spikes; +- is the standard error of "
      "paired differences."};
  for (const SplitPart& part : worst_first(parts)) {
    std::vector<std::string> row = {part.name};
    append(row, part.alone);
    append(row, *part.rest);
    table.rows.push_back(std::move(row));
  }
  return table;
}

view::Table cell_table(const std::vector<SplitPart>& cells) {
  constexpr size_t kMost = 15;
  view::Table table{
      "The places that cost most", {"site", "layer", "alone: perplexity", "loss %", "+-"}, {}, ""};
  for (const SplitPart& cell : worst_first(cells)) {
    if (table.rows.size() == kMost) break;
    std::vector<std::string> row = {cell.name, fmt::to_string(cell.layer)};
    append(row, cell.alone);
    table.rows.push_back(std::move(row));
  }
  return table;
}

json run_json(const SplitRun& run) {
  return {{"perplexity", run.perplexity},
          {"loss", run.loss.value},
          {"standard_error", run.loss.standard_error}};
}

json parts_json(const std::vector<SplitPart>& parts) {
  json out = json::array();
  for (const SplitPart& part : parts) {
    json one = {{"part", part.name}, {"alone", run_json(part.alone)}};
    if (part.rest) one["rest"] = run_json(*part.rest);
    if (part.layer >= 0) one["layer"] = part.layer;
    out.push_back(std::move(one));
  }
  return out;
}

void append_csv(std::string& csv, const std::string& kind, const std::vector<SplitPart>& parts) {
  const auto line = [&](const SplitPart& part, const char* run, const SplitRun& values) {
    const std::string layer = part.layer >= 0 ? fmt::to_string(part.layer) : "";
    csv += fmt::format("{},\"{}\",{},{},{},{},{}\n", kind, part.name, layer, run, values.perplexity,
                       values.loss.value, values.loss.standard_error);
  };
  for (const SplitPart& part : parts) {
    line(part, "alone", part.alone);
    if (part.rest) line(part, "rest", *part.rest);
  }
}

}  // namespace

std::vector<view::Table> split_tables(const SpikeSplit& split) {
  view::Table causes{"What the loss comes from",
                     {"cause", "perplexity", "loss %", "+-"},
                     {},
                     split.float_model.empty()
                         ? "Against codes without spikes; --float MODEL tells what the codes cost."
                         : "Against the float model in the same products."};
  for (const SplitPart& cause : split.causes) {
    std::vector<std::string> row = {cause.name};
    append(row, cause.alone);
    causes.rows.push_back(std::move(row));
  }
  std::vector<view::Table> tables = {std::move(causes)};
  if (!split.sites.empty()) tables.push_back(part_table("Loss by site, all layers", split.sites));
  if (!split.by_layer.empty()) {
    tables.push_back(part_table("Loss by layer, all sites", split.by_layer));
  }
  if (!split.cells.empty()) tables.push_back(cell_table(split.cells));
  return tables;
}

json to_json(const SpikeSplit& split) {
  return {{"float", printable(split.float_model, 4096)}, {"predictions", split.predictions},
          {"causes", parts_json(split.causes)},          {"sites", parts_json(split.sites)},
          {"layers", parts_json(split.by_layer)},        {"cells", parts_json(split.cells)}};
}

std::string to_csv(const SpikeSplit& split) {
  std::string csv = "kind,part,layer,run,perplexity,loss,standard_error\n";
  append_csv(csv, "cause", split.causes);
  append_csv(csv, "site", split.sites);
  append_csv(csv, "layer", split.by_layer);
  append_csv(csv, "cell", split.cells);
  return csv;
}

std::optional<NamedPicture> split_picture(const SpikeSplit& split) {
  if (split.cells.empty()) return std::nullopt;
  view::HeatMap map{"Loss of single places", "%", {}, {}, "layer", {}};
  for (const SplitPart& cell : split.cells) {
    if (map.rows.empty() || map.rows.back() != cell.name) map.rows.push_back(cell.name);
  }
  for (int64_t layer = 0; layer < split.layers; ++layer) {
    map.columns.push_back(fmt::to_string(layer));
  }
  map.values.resize(map.rows.size() * map.columns.size());
  for (const SplitPart& cell : split.cells) {
    const auto row = std::find(map.rows.begin(), map.rows.end(), cell.name) - map.rows.begin();
    map.values[static_cast<size_t>(row * split.layers + cell.layer)] = 100 * cell.alone.loss.value;
  }
  return NamedPicture{"split.svg", "Where spikes cost perplexity",
                      "By how much perplexity grows, in percent, when only this site of this layer "
                      "spikes. Dark places are where a larger k, or no spikes, helps most.",
                      view::draw_heat_map(map)};
}

}  // namespace spb::cli
