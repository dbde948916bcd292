#include "cli/spikes_pictures.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/spikes_tables.h"
#include "core/error.h"
#include "view/html_page.h"

namespace spb::cli {
namespace {

using spike::SpikeFigures;

NamedPicture raster_picture(const view::Raster& raster) {
  return {"raster.svg", "Which neuron fires when",
          "Each row is a neuron, each shaded or unshaded band a token, and within a band the "
          "timesteps of one spike count; a bar is a spike. A bar that comes early in its band "
          "carries more of the count when the highest bit is sent first.",
          view::draw_raster(raster)};
}

NamedPicture histogram_picture(const spike::SiteStatistics& all) {
  std::vector<view::HistogramSeries> series;
  for (const auto& [key, statistics] : group_by(all, {false, true, false})) {
    view::HistogramSeries one{key.site, {}, 0};
    const auto entries = static_cast<double>(statistics.entries());
    for (int c = 0; c < spike::SpikeStatistics::kBins; ++c) {
      one.shares.push_back(static_cast<double>(statistics.histogram(c)) / entries);
    }
    one.beyond = static_cast<double>(statistics.tail()) / entries;
    series.push_back(std::move(one));
  }
  return {
      "histogram.svg", "How large counts are",
      "The share of entries with each |count|, by the site that reads them. Left of the edge of "
      "the shaded band a count fits into three timesteps; the leftmost point is silence.",
      view::draw_histogram("Histogram of spike counts", series)};
}

NamedPicture heat_picture(const SpikesReport& report, double SpikeFigures::*value,
                          const std::string& file, const std::string& title,
                          const std::string& unit, const std::string& explanation) {
  const spike::SiteStatistics groups = group_by(report.run.statistics, {true, true, false});
  view::HeatMap map{title, unit, {}, {}, "layer", {}};
  for (int i = 0; i < model::kSites; ++i) {
    const std::string site(name(static_cast<model::Site>(i)));
    const bool spikes = std::any_of(groups.begin(), groups.end(),
                                    [&](const auto& group) { return group.first.site == site; });
    if (spikes) map.rows.push_back(site);
  }
  for (int64_t layer = 0; layer < report.layers; ++layer) {
    map.columns.push_back(fmt::to_string(layer));
  }
  for (const std::string& site : map.rows) {
    for (int64_t layer = 0; layer < report.layers; ++layer) {
      const auto found = groups.find({static_cast<int32_t>(layer), site, ""});
      const bool there = found != groups.end();
      map.values.push_back(there ? std::optional(found->second.figures().*value) : std::nullopt);
    }
  }
  return {file, title, explanation, view::draw_heat_map(map)};
}

NamedPicture sweep_picture(const std::vector<SpikeRun>& sweep) {
  view::Curve curve{"Perplexity against sparsity",
                    "sparsity over 3 timesteps (1 - spikes per entry / 3)",
                    "perplexity",
                    {}};
  for (const SpikeRun& run : sweep) {
    curve.points.push_back({pool_all(run.statistics).figures().sparsity_t3_per_entry,
                            run.perplexity.value(), fmt::format("k = {:g}", run.k)});
  }
  return {"sweep.svg", "What silence costs",
          "Each point is the whole text read with another k; the threshold is the mean activation "
          "divided by k. Right is more silence, down is a better prediction of the text.",
          view::draw_curve(curve)};
}

std::string summary(const SpikesReport& report) {
  const SpikeFigures f = pool_all(report.run.statistics).figures();
  return fmt::format(
      "The model read {} tokens in windows of {} with k = {:g} and the profile {}: perplexity "
      "{:.4f} +- {:.4f}. {:.1f} % of its spike counts were silent, {:.1f} % were at most 7, and an "
      "entry took {:.3f} spikes on average when sent bit by bit ({:.3f} counting only entries that "
      "fired).",
      report.tokens, report.window, report.run.k, report.profile, report.run.perplexity.value(),
      report.run.perplexity.standard_error(), 100 * f.silent_share, 100 * f.share_up_to_7,
      f.mean_spikes_per_entry, f.mean_spikes_per_firing_entry);
}

void add_energy(const SpikesReport& report, view::HtmlPage& page) {
  page.heading("Energy, estimated");
  page.paragraph(
      "These are operations and bytes times constants of 45 nm hardware, not measurements of "
      "anything. Additions instead of multiplications save most of the compute; fetching weights "
      "costs far more, and spikes save only what silent channels need not fetch.");
  page.table(operations_table(report.run.energy));
  page.table(energy_table(report.run.energy, true));
  page.table(energy_table(report.run.energy, false));
}

}  // namespace

std::vector<NamedPicture> draw_pictures(const SpikesReport& report, const view::Raster& raster) {
  std::vector<NamedPicture> pictures;
  pictures.push_back(raster_picture(raster));
  pictures.push_back(histogram_picture(report.run.statistics));
  pictures.push_back(heat_picture(
      report, &SpikeFigures::mean_spikes_per_entry, "firing.svg", "Spikes per entry", "spikes",
      "How many one bits a count has on average, layer by layer and site by site. Darker places do "
      "more work on hardware that is driven by events."));
  pictures.push_back(heat_picture(
      report, &SpikeFigures::silent_share, "silence.svg", "Share of silent entries", "share",
      "The share of counts that are 0. Their weights need not be read, so dark places are where "
      "event-driven execution can save time."));
  if (!report.sweep.empty()) pictures.push_back(sweep_picture(report.sweep));
  return pictures;
}

std::string html_report(const SpikesReport& report, const std::vector<NamedPicture>& pictures,
                        const std::vector<view::Table>& split) {
  const spike::SiteStatistics& all = report.run.statistics;
  view::HtmlPage page("Spikes of " + report.model);
  page.paragraph(summary(report));
  for (const NamedPicture& picture : pictures) {
    page.heading(picture.heading);
    page.paragraph(picture.explanation);
    page.picture(picture.svg);
    if (picture.file == "sweep.svg") page.table(sweep_table(report.sweep));
  }
  if (!split.empty()) page.heading("Where perplexity is lost");
  for (const view::Table& table : split) page.table(table);
  page.heading("Figures");
  spike::SiteStatistics sites = group_by(all, {false, true, false});
  sites[{-1, "", ""}] = pool_all(all);
  page.table(count_table("Spike counts s by site, all layers", sites));
  page.table(sparsity_table("Sparsity, firing rates, timesteps", sites));
  page.table(count_table("By class of token", group_by(all, {false, false, true})));
  page.table(active_table(all));
  add_energy(report, page);
  page.heading("Every layer");
  page.table(count_table("By layer, all sites", group_by(all, {true, false, false})));
  page.table(count_table("By layer and site", group_by(all, {true, true, false})));
  return page.str();
}

}  // namespace spb::cli
