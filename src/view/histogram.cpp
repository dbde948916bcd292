// The histogram of draw_histogram.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "view/axis.h"
#include "view/pictures.h"

namespace spb::view {
namespace {

constexpr size_t kMostSeries = 5;
constexpr double kLegendWidth = 150;
constexpr double kBeyondWidth = 44;  // of the bin for what has none
constexpr int kReportBits = 3;       // timesteps of the report

class HistogramDrawing {
 public:
  HistogramDrawing(const std::string& title, const std::vector<HistogramSeries>& series)
      : title_(title), series_(series) {
    check(!series.empty() && series.size() <= kMostSeries,
          "histogram: series: expected 1 to {}, got {}", kMostSeries, series.size());
    double least = 1;
    for (const HistogramSeries& one : series) {
      bins_ = std::max(bins_, one.shares.size());
      any_beyond_ |= one.beyond > 0;
      for (const double share : one.shares) least = share > 0 ? std::min(least, share) : least;
      if (one.beyond > 0) least = std::min(least, one.beyond);
    }
    check(bins_ > 0, "histogram: expected some counts");
    lowest_decade_ = std::clamp(static_cast<int>(std::floor(std::log10(least))), -9, -1);
    octaves_ = std::log2(static_cast<double>(bins_) + 1);
  }

  Svg draw() {
    Svg svg(860, 400, title_);
    svg.text(frame_.left, 24, Anchor::kStart, "head", title_);
    const double window = std::min(x_of(1 << kReportBits), frame_.right());
    svg.rect(frame_.left, frame_.top, window - frame_.left, frame_.height, "band");
    svg.text(frame_.left + 6, frame_.top + 14, Anchor::kStart, "faint",
             fmt::format("up to {} bits", kReportBits));
    draw_ticks(svg);
    for (size_t i = 0; i < series_.size(); ++i) draw_series(svg, i);
    svg.rect(frame_.left, frame_.top, frame_.width, frame_.height, "frame");
    draw_axis_names(svg, frame_, "|spike count|, spaced by log2(1 + count)",
                    "share of entries (log scale)");
    return svg;
  }

 private:
  double core_width() const { return frame_.width - (any_beyond_ ? kBeyondWidth : 0); }
  double x_of(int64_t count) const {
    return frame_.left + std::log2(static_cast<double>(count) + 1) / octaves_ * core_width();
  }
  double y_of(double share) const {
    const double decades = std::log10(share) / lowest_decade_;
    return frame_.top + std::min(decades, 1.0) * frame_.height;
  }

  void draw_ticks(Svg& svg) const {
    for (int decade = 0; decade >= lowest_decade_; --decade) {
      const int power = decade + 2;  // in percent
      draw_y_tick(svg, frame_, y_of(std::pow(10.0, decade)),
                  power >= -2 ? fmt::format("{:.{}f} %", std::pow(10.0, power), std::max(0, -power))
                              : fmt::format("1e{} %", power));
    }
    for (const int64_t count : {0, 1, 2, 3, 4, 5, 6, 7, 10, 15, 22, 31, 45, 63, 90, 127}) {
      if (count >= static_cast<int64_t>(bins_)) break;
      if (any_beyond_ && count + 1 == static_cast<int64_t>(bins_)) break;  // beside its label
      const double centre = (x_of(count) + x_of(count + 1)) / 2;
      draw_x_tick(svg, frame_, centre, fmt::to_string(count));
    }
    if (any_beyond_) {
      draw_x_tick(svg, frame_, frame_.right() - kBeyondWidth / 2, fmt::format(">{}", bins_ - 1));
    }
  }

  // A line through the middles of the bins; the bin of the rest is a dash of its own.
  void draw_series(Svg& svg, size_t index) const {
    const HistogramSeries& one = series_[index];
    const std::string css = fmt::format("curve{}", index);
    std::string commands;
    bool pen_down = false;
    for (size_t c = 0; c < one.shares.size(); ++c) {
      const auto count = static_cast<int64_t>(c);
      if (one.shares[c] > 0) {
        commands += fmt::format("{}{:.2f} {:.2f}", pen_down ? "L" : "M",
                                (x_of(count) + x_of(count + 1)) / 2, y_of(one.shares[c]));
      }
      pen_down = one.shares[c] > 0;
    }
    svg.path(commands, css);
    const double slot = (kBeyondWidth - 8) / static_cast<double>(kMostSeries);
    if (one.beyond > 0) {
      const double x = frame_.right() - kBeyondWidth + 4 + slot * static_cast<double>(index);
      svg.path(fmt::format("M{:.2f} {:.2f}h{:.2f}", x, y_of(one.beyond), slot), css);
    }
    const double y = frame_.top + 10 + 20 * static_cast<double>(index);
    svg.path(fmt::format("M{:.2f} {:.2f}h24", frame_.right() + 14, y), css);
    svg.text(frame_.right() + 44, y + 4, Anchor::kStart, "ink", one.name);
  }

  const std::string& title_;
  const std::vector<HistogramSeries>& series_;
  Frame frame_{84, 44, 860 - 84 - kLegendWidth, 300};
  size_t bins_ = 0;
  bool any_beyond_ = false;
  int lowest_decade_ = -1;
  double octaves_ = 1;
};

}  // namespace

Svg draw_histogram(const std::string& title, const std::vector<HistogramSeries>& series) {
  return HistogramDrawing(title, series).draw();
}

}  // namespace spb::view
