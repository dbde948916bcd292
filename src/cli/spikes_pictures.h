// The pictures and the HTML report of spb spikes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/spikes_run.h"
#include "view/pictures.h"
#include "view/table.h"

namespace spb::cli {

struct RasterRequest {
  int64_t layer = 0;
  model::Site site = model::Site::kMixerInput;
  int64_t tokens = 32;   // the first ones of the text
  int64_t neurons = 40;  // the most active ones, unless a range is given
  std::optional<std::pair<int64_t, int64_t>> range;
  spike::Coding coding = spike::Coding::kBitwiseBidirectional;
  spike::BitOrder order = spike::BitOrder::kMostSignificantFirst;
};

// "LAYER:SITE", and "N" or "FIRST-LAST". Usage errors naming the option.
void parse_place(const std::string& text, RasterRequest& request);
void parse_neurons(const std::string& text, RasterRequest& request);

// Keeps the counts that a raster shows while the model runs.
class RasterTap {
 public:
  explicit RasterTap(const RasterRequest& request) : request_(request) {}

  void operator()(const SiteCounts& seen);

  // Usage error when the layer or site has no spikes or the range lies outside.
  view::Raster raster() const;

 private:
  std::vector<int64_t> choose_neurons() const;

  RasterRequest request_;
  int64_t channels_ = 0;         // of a token
  std::vector<int32_t> counts_;  // [tokens, channels]
};

struct NamedPicture {
  std::string file;  // "raster.svg"
  std::string heading;
  std::string explanation;
  view::Svg svg;
};

std::vector<NamedPicture> draw_pictures(const SpikesReport& report, const view::Raster& raster);

// `split`: tables of the split, if there is one.
std::string html_report(const SpikesReport& report, const std::vector<NamedPicture>& pictures,
                        const std::vector<view::Table>& split);

}  // namespace spb::cli
