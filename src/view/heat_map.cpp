// The heat map of draw_heat_map.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "view/axis.h"
#include "view/pictures.h"

namespace spb::view {
namespace {

constexpr double kLegendWidth = 120;
constexpr double kRowHeight = 34;

// Light to dark in one hue and a half: read in grey too.
std::string color_of(double share) {
  struct Color {
    double r, g, b;
  };
  static constexpr std::array<Color, 5> kStops = {
      {{247, 251, 255}, {198, 219, 239}, {107, 174, 214}, {33, 113, 181}, {8, 48, 107}}};
  const double at = std::clamp(share, 0.0, 1.0) * (kStops.size() - 1);
  const auto low = std::min(static_cast<size_t>(at), kStops.size() - 2);
  const double part = at - static_cast<double>(low);
  const auto mix = [&](double Color::*c) {
    const double value = kStops[low].*c * (1 - part) + kStops[low + 1].*c * part;
    return static_cast<int>(std::lround(value));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(&Color::r), mix(&Color::g), mix(&Color::b));
}

class HeatMapDrawing {
 public:
  explicit HeatMapDrawing(const HeatMap& map) : map_(map) {
    const size_t rows = map.rows.size();
    const size_t columns = map.columns.size();
    check(rows > 0 && columns > 0 && map.values.size() == rows * columns,
          "heat map: values: expected {} x {}, got {}", rows, columns, map.values.size());
    std::vector<double> present;
    for (const auto& value : map.values) {
      if (value) present.push_back(*value);
    }
    check(!present.empty(), "heat map: expected some values");
    range_ = range_of(present, 0);
    cell_width_ = std::clamp(720 / static_cast<double>(columns), 10.0, 64.0);
    frame_ = {96, 48, cell_width_ * static_cast<double>(columns),
              kRowHeight * static_cast<double>(rows)};
  }

  Svg draw() {
    const double height = std::max(frame_.bottom() + 52, 240.0);
    Svg svg(std::max(frame_.right() + kLegendWidth, 480.0), height, map_.title);
    svg.text(20, 24, Anchor::kStart, "head", map_.title);
    for (size_t row = 0; row < map_.rows.size(); ++row) draw_row(svg, row);
    draw_columns(svg);
    draw_legend(svg);
    return svg;
  }

 private:
  double share_of(double value) const { return (value - range_.low) / (range_.high - range_.low); }

  void draw_row(Svg& svg, size_t row) {
    const double y = frame_.top + kRowHeight * static_cast<double>(row);
    svg.text(frame_.left - 8, y + kRowHeight / 2 + 4, Anchor::kEnd, "ink", map_.rows[row]);
    for (size_t column = 0; column < map_.columns.size(); ++column) {
      const double x = frame_.left + cell_width_ * static_cast<double>(column);
      const auto& value = map_.values[row * map_.columns.size() + column];
      if (!value) {
        svg.rect(x + 0.5, y + 0.5, cell_width_ - 1, kRowHeight - 1, "band");
        continue;
      }
      svg.cell(x + 0.5, y + 0.5, cell_width_ - 1, kRowHeight - 1, color_of(share_of(*value)),
               fmt::format("{} {}, {}: {:.4g} {}", map_.column_name, map_.columns[column],
                           map_.rows[row], *value, map_.unit));
      if (cell_width_ < 23) continue;
      svg.text(x + cell_width_ / 2, y + kRowHeight / 2 + 4, Anchor::kMiddle,
               share_of(*value) > 0.55 ? "on-dark" : "on-light", short_number(*value));
    }
  }

  static std::string short_number(double value) {
    return fmt::format("{:.{}f}", value, std::fabs(value) >= 9.995 ? 0 : 2);
  }

  void draw_columns(Svg& svg) const {
    const auto every = static_cast<size_t>(std::ceil(22 / cell_width_));
    for (size_t column = 0; column < map_.columns.size(); column += every) {
      svg.text(frame_.left + cell_width_ * (static_cast<double>(column) + 0.5),
               frame_.bottom() + 16, Anchor::kMiddle, "faint", map_.columns[column]);
    }
    svg.text(frame_.left + frame_.width / 2, frame_.bottom() + 38, Anchor::kMiddle, "ink",
             map_.column_name);
  }

  void draw_legend(Svg& svg) const {
    constexpr int kSteps = 48;
    const double left = frame_.right() + 24;
    const double height = std::max(frame_.height, 120.0);
    for (int i = 0; i < kSteps; ++i) {
      const double share = 1 - (i + 0.5) / kSteps;
      svg.cell(left, frame_.top + height * i / kSteps, 14, height / kSteps + 0.6, color_of(share),
               "");
    }
    const std::vector<double> ticks = round_ticks(range_, 5);
    for (const double tick : ticks) {
      const double y = frame_.top + height * (1 - share_of(tick));
      svg.line(left + 14, y, left + 18, y, "axis");
      svg.text(left + 22, y + 4, Anchor::kStart, "faint", tick_label(tick, ticks));
    }
    svg.text(left, frame_.top - 10, Anchor::kStart, "faint", map_.unit);
  }

  const HeatMap& map_;
  Range range_;
  double cell_width_ = 0;
  Frame frame_;
};

}  // namespace

Svg draw_heat_map(const HeatMap& map) { return HeatMapDrawing(map).draw(); }

}  // namespace spb::view
