// The raster of spb spikes: which counts it keeps and which neurons it shows.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>

#include "cli/spikes_pictures.h"
#include "core/error.h"

namespace spb::cli {
namespace {

// The whole of `text` as a number; nothing if it is none.
std::optional<int64_t> parse_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size() && value >= 0;
  return whole ? std::optional(value) : std::nullopt;
}

std::optional<model::Site> parse_site(std::string_view text) {
  for (int i = 0; i < model::kSites; ++i) {
    const auto site = static_cast<model::Site>(i);
    if (name(site) == text) return site;
  }
  return std::nullopt;
}

}  // namespace

void parse_place(const std::string& text, RasterRequest& request) {
  const size_t colon = text.find(':');
  const std::optional<int64_t> layer = parse_number(std::string_view(text).substr(0, colon));
  const std::optional<model::Site> site =
      parse_site(colon == std::string::npos ? "" : std::string_view(text).substr(colon + 1));
  check(layer && site,
        "--raster: expected LAYER:SITE with a site of mixer_in, mixer_out, query, ffn_in, ffn_out, "
        "got '{}'",
        printable(text));
  request.layer = *layer;
  request.site = *site;
}

void parse_neurons(const std::string& text, RasterRequest& request) {
  const size_t dash = text.find('-');
  const std::optional<int64_t> first = parse_number(std::string_view(text).substr(0, dash));
  if (dash == std::string::npos) {
    check(first && *first >= 1 && *first <= view::kMaxRasterNeurons,
          "--neurons: expected 1 to {} or a range FIRST-LAST, got '{}'", view::kMaxRasterNeurons,
          printable(text));
    request.neurons = *first;
    return;
  }
  const std::optional<int64_t> last = parse_number(std::string_view(text).substr(dash + 1));
  check(first && last && *first <= *last && *last - *first < view::kMaxRasterNeurons,
        "--neurons: expected FIRST-LAST with at most {} neurons, got '{}'", view::kMaxRasterNeurons,
        printable(text));
  request.range = {*first, *last};
}

void RasterTap::operator()(const SiteCounts& seen) {
  if (seen.layer != request_.layer || seen.site != request_.site) return;
  const int64_t columns = seen.counts->core.shape()[1];
  channels_ = columns * seen.rows_per_token;
  // The first window only; and of parallel mixers that fire one after the other, the first.
  const auto kept = static_cast<int64_t>(counts_.size()) / channels_;
  if (kept != seen.tokens.first) return;
  const int64_t rows = std::min(request_.tokens - kept, seen.tokens.count) * seen.rows_per_token;
  if (rows <= 0) return;
  const auto start = static_cast<int64_t>(counts_.size());
  for (int64_t m = 0; m < rows; ++m) {
    const int8_t* core = seen.counts->core.row_as<int8_t>(m);
    counts_.insert(counts_.end(), core, core + columns);
  }
  for (const spike::Burst& burst : seen.counts->bursts) {
    if (burst.row >= rows) break;
    counts_[static_cast<size_t>(start + burst.row * columns + burst.channel)] += burst.excess;
  }
}

// The most active ones are those with the largest sum of |count|; shown in the order of their ids.
std::vector<int64_t> RasterTap::choose_neurons() const {
  std::vector<int64_t> ids(static_cast<size_t>(channels_));
  std::iota(ids.begin(), ids.end(), 0);
  if (request_.range) {
    const auto [first, last] = *request_.range;
    check(last < channels_, "--neurons: expected ids below {}, got {}", channels_, last);
    return {ids.begin() + first, ids.begin() + last + 1};
  }
  std::vector<int64_t> activity(ids.size());
  for (size_t i = 0; i < counts_.size(); ++i) {
    activity[i % ids.size()] += std::abs(int64_t{counts_[i]});
  }
  std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) {
    return activity[static_cast<size_t>(a)] > activity[static_cast<size_t>(b)];
  });
  ids.resize(std::min(ids.size(), static_cast<size_t>(request_.neurons)));
  std::sort(ids.begin(), ids.end());
  return ids;
}

view::Raster RasterTap::raster() const {
  check(channels_ > 0 && !counts_.empty(), "--raster: layer {} has no spikes at site {}",
        request_.layer, name(request_.site));
  view::Raster raster;
  raster.title = fmt::format("Spikes of layer {}, site {}", request_.layer, name(request_.site));
  raster.neurons = choose_neurons();
  for (size_t row = 0; row < counts_.size(); row += static_cast<size_t>(channels_)) {
    for (const int64_t id : raster.neurons) {
      raster.counts.push_back(counts_[row + static_cast<size_t>(id)]);
    }
  }
  raster.coding = request_.coding;
  raster.order = request_.order;
  return raster;
}

}  // namespace spb::cli
