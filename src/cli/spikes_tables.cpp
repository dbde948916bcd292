#include "cli/spikes_tables.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <optional>

namespace spb::cli {
namespace {

using spike::SpikeFigures;
using view::Table;

std::string percent(double share) { return fmt::format("{:.2f}", 100 * share); }
std::string fixed(double value) { return fmt::format("{:.3f}", value); }
std::string whole(double value) { return fmt::format("{:.0f}", value); }

struct Column {
  const char* head;
  double SpikeFigures::*value;
  std::string (*format)(double);
};

template <size_t N>
Table table_of(const std::string& title, const spike::SiteStatistics& groups,
               const Column (&columns)[N]) {
  Table table{title, {""}, {}, ""};
  for (const Column& column : columns) table.columns.emplace_back(column.head);
  for (const auto& [key, statistics] : groups) {
    const SpikeFigures figures = statistics.figures();
    std::vector<std::string> row = {group_name(key)};
    for (const Column& column : columns) row.push_back(column.format(figures.*column.value));
    table.rows.push_back(std::move(row));
  }
  return table;
}

// The sparsity that the SpikingBrain-7B report prints for a k (its table 11).
std::optional<double> reported_sparsity(double k) {
  constexpr std::array<std::pair<double, double>, 5> kReported = {
      {{2.0, 0.730}, {2.5, 0.709}, {3.0, 0.692}, {3.5, 0.677}, {4.0, 0.664}}};
  for (const auto& [reported, sparsity] : kReported) {
    if (reported == k) return sparsity;
  }
  return std::nullopt;
}

std::string microjoules(double picojoules, int64_t tokens) {
  return fmt::format("{:.2f}", picojoules / static_cast<double>(tokens) * 1e-6);
}

std::string millions(double count, int64_t tokens) {
  return count == 0 ? "-" : fmt::format("{:.3f}", count / static_cast<double>(tokens) * 1e-6);
}

std::string change(double from, double to) {
  return from > 0 ? fmt::format("{:+.1f} %", 100 * (to / from - 1)) : "-";
}

}  // namespace

std::string group_name(const spike::SiteKey& key) {
  std::string name = key.layer >= 0 ? fmt::format("layer {}", key.layer) : "";
  for (const std::string& part : {key.site, key.token_class}) {
    if (part.empty()) continue;
    name += name.empty() ? part : ", " + part;
  }
  return name.empty() ? "all" : name;
}

Table count_table(const std::string& title, const spike::SiteStatistics& groups) {
  using F = SpikeFigures;
  static constexpr Column kColumns[] = {
      {"entries", &F::entries, whole},
      {"silent %", &F::silent_share, percent},
      {"|s|<=7 %", &F::share_up_to_7, percent},
      {">16 %", &F::share_above_16, percent},
      {">127 %", &F::share_beyond_core, percent},
      {"largest", &F::largest_count, whole},
      {"mean |s|", &F::mean_count, fixed},
      {"spikes/entry", &F::mean_spikes_per_entry, fixed},
      {"/firing entry", &F::mean_spikes_per_firing_entry, fixed},
      {"silent channels %", &F::silent_channel_share, percent},
  };
  return table_of(title, groups, kColumns);
}

Table sparsity_table(const std::string& title, const spike::SiteStatistics& groups) {
  using F = SpikeFigures;
  static constexpr Column kColumns[] = {
      {"T3/entry", &F::sparsity_t3_per_entry, fixed},
      {"T3/firing", &F::sparsity_t3_per_firing_entry, fixed},
      {"T3 clamped", &F::sparsity_t3_clamped_to_7, fixed},
      {"T3 low bits", &F::sparsity_t3_low_bits, fixed},
      {"T3 dropped", &F::sparsity_t3_dropped_above_7, fixed},
      {"all bits", &F::sparsity_all_bits, fixed},
      {"| bitwise", &F::firing_rate_bitwise_bidirectional, fixed},
      {"two's c.", &F::firing_rate_twos_complement, fixed},
      {"ternary", &F::firing_rate_ternary, fixed},
      {"| T bitwise", &F::count_bits, whole},
      {"T ternary", &F::largest_count, whole},
  };
  Table table = table_of(title, groups, kColumns);
  table.note =
      "Sparsity (share of zeros) by name | firing rate of three codings | timesteps T they take.\n"
      "T3: 3 timesteps, 1 - spikes/3 over all entries or over firing ones; clamped, low bits and\n"
      "dropped: what becomes of counts above 7 there. All bits: as many timesteps as are needed.";
  return table;
}

std::vector<Table> figure_tables(const spike::SiteStatistics& groups) {
  constexpr size_t kGroups = 6;
  std::vector<Table> tables;
  size_t in_table = kGroups;
  for (const auto& [key, statistics] : groups) {
    if (in_table == kGroups) {
      tables.push_back({"Every figure", {"figure"}, {}, ""});
      for (const spike::FigureField& field : spike::figure_fields()) {
        tables.back().rows.push_back({std::string(field.name)});
      }
      in_table = 0;
    }
    ++in_table;
    const SpikeFigures figures = statistics.figures();
    tables.back().columns.push_back(group_name(key));
    for (size_t i = 0; i < spike::figure_fields().size(); ++i) {
      const double value = figures.*spike::figure_fields()[i].value;
      tables.back().rows[i].push_back(value == std::floor(value) ? whole(value)
                                                                 : fmt::format("{:.5f}", value));
    }
  }
  if (!tables.empty()) {
    for (const spike::FigureField& field : spike::figure_fields()) {
      tables.back().note += fmt::format("{}: {}\n", field.name, field.meaning);
    }
  }
  return tables;
}

// By site, and over all of them.
Table active_table(const spike::SiteStatistics& all) {
  constexpr double kPress = 0.0185;
  Table table{"What could be \"1.85 % active spikes\", in %", {"figure", "all"}, {}, ""};
  std::vector<SpikeFigures> figures = {pool_all(all).figures()};
  for (const auto& [key, statistics] : group_by(all, {false, true, false})) {
    table.columns.push_back(key.site);
    figures.push_back(statistics.figures());
  }
  table.columns.emplace_back("of that order");
  for (const spike::FigureField& field : spike::figure_fields()) {
    const bool candidate = field.name.starts_with("active_share") ||
                           field.name.starts_with("firing_rate") || field.name == "share_above_16";
    if (!candidate) continue;
    std::vector<std::string> row = {std::string(field.name)};
    std::string near;
    for (size_t i = 0; i < figures.size(); ++i) {
      const double share = figures[i].*field.value;
      row.push_back(fmt::format("{:.3f}", 100 * share));
      if (share <= kPress / 2 || share >= kPress * 2) continue;
      near += (near.empty() ? "" : ", ") + table.columns[i + 1];
    }
    row.push_back(near.empty() ? "-" : near);
    table.rows.push_back(std::move(row));
  }
  table.note =
      "Press articles give the number without saying of what; the report does not have it. Of "
      "that\n"
      "order: within a factor of two. active_share: entries that fire, over entries times the\n"
      "timesteps of a coding; firing_rate: spikes over the same; share_above_16: large counts.";
  return table;
}

Table sweep_table(std::span<const SpikeRun> runs) {
  Table table{"k sweep: more spikes, less error",
              {"k", "perplexity", "+-", "silent %", "|s|<=7 %", "spikes/entry", "/firing entry",
               "T3/entry", "T3/firing", "T3 clamped", "all bits", "reported 7B"},
              {},
              "The last column is the sparsity of table 11 in the SpikingBrain-7B report."};
  for (const SpikeRun& run : runs) {
    const SpikeFigures f = pool_all(run.statistics).figures();
    const std::optional<double> reported = reported_sparsity(run.k);
    table.rows.push_back({fmt::format("{:g}", run.k), fmt::format("{:.4f}", run.perplexity.value()),
                          fmt::format("{:.4f}", run.perplexity.standard_error()),
                          percent(f.silent_share), percent(f.share_up_to_7),
                          fixed(f.mean_spikes_per_entry), fixed(f.mean_spikes_per_firing_entry),
                          fixed(f.sparsity_t3_per_entry), fixed(f.sparsity_t3_per_firing_entry),
                          fixed(f.sparsity_t3_clamped_to_7), fixed(f.sparsity_all_bits),
                          reported ? fixed(*reported) : "-"});
  }
  return table;
}

Table operations_table(const EnergyReport& energy) {
  Table table{"Operations per token, millions",
              {"part", "executed as", "products", "additions by spikes"},
              {},
              "Products: multiply-adds of the dense matrices. Additions by spikes (synaptic\n"
              "operations): one for each one bit of a count and output."};
  for (const EnergyPart& part : energy.parts) {
    table.rows.push_back({part.name, part.execution,
                          millions(part.together.products, energy.tokens),
                          millions(part.together.synaptic_operations, energy.tokens)});
  }
  return table;
}

Table energy_table(const EnergyReport& energy, bool together) {
  Table table{together
                  ? "Energy per token, microjoules, ESTIMATED: weights shared by the tokens of "
                    "a call (prefill)"
                  : "Energy per token, microjoules, ESTIMATED: one token at a time (decode)",
              {"part", "executed as", "compute", "int8 dense", "fp16 dense", "| with memory",
               "int8 dense", "fp16 dense"},
              {},
              ""};
  for (const EnergyPart& part : energy.parts) {
    const spike::SiteEnergy& e = together ? part.together : part.alone;
    std::vector<std::string> row = {part.name, part.execution};
    for (const spike::Energy* kind : {&e.executed, &e.int8_dense, &e.fp16_dense}) {
      row.push_back(microjoules(kind->compute, energy.tokens));
    }
    for (const spike::Energy* kind : {&e.executed, &e.int8_dense, &e.fp16_dense}) {
      row.push_back(microjoules(kind->total(), energy.tokens));
    }
    table.rows.push_back(std::move(row));
  }
  const spike::SiteEnergy& sum = together ? energy.total().together : energy.total().alone;
  table.rows.push_back({"this model against", "", "",
                        change(sum.int8_dense.compute, sum.executed.compute),
                        change(sum.fp16_dense.compute, sum.executed.compute), "",
                        change(sum.int8_dense.total(), sum.executed.total()),
                        change(sum.fp16_dense.total(), sum.executed.total())});
  return table;
}

}  // namespace spb::cli
