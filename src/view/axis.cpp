#include "view/axis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace spb::view {
namespace {

constexpr double kTick = 4;
constexpr double kLabelGap = 5;
constexpr double kNameBelow = 36;  // from the frame to the name of the x axis
constexpr double kNameLeft = 50;   // and of the y axis

double tick_step(Range range, int most) {
  const double least = (range.high - range.low) / most;
  double step = std::pow(10, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    if (step * factor >= least * (1 - 1e-9)) return step * factor;
  }
  return step * 10;
}

}  // namespace

Range range_of(const std::vector<double>& values, double margin) {
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double spread = *high - *low;
  const double pad = spread > 0 ? spread * margin : std::max(std::fabs(*high) * margin, 1e-3);
  return {*low - pad, *high + pad};
}

std::vector<double> round_ticks(Range range, int most) {
  const double step = tick_step(range, most);
  std::vector<double> ticks;
  for (double n = std::ceil(range.low / step - 1e-9); n * step <= range.high + step * 1e-9; ++n) {
    ticks.push_back(n * step);
  }
  return ticks;
}

std::string tick_label(double value, const std::vector<double>& ticks) {
  const double step = ticks.size() > 1 ? ticks[1] - ticks[0] : std::fabs(value);
  const int decimals =
      step > 0 ? std::clamp(static_cast<int>(std::ceil(-std::log10(step) - 1e-9)), 0, 9) : 0;
  const std::string label = fmt::format("{:.{}f}", value, decimals);
  return label == "-0" ? "0" : label;
}

void draw_x_tick(Svg& svg, const Frame& frame, double x, std::string_view label) {
  svg.line(x, frame.top, x, frame.bottom(), "grid");
  svg.line(x, frame.bottom(), x, frame.bottom() + kTick, "axis");
  svg.text(x, frame.bottom() + kTick + 12, Anchor::kMiddle, "faint", label);
}

void draw_y_tick(Svg& svg, const Frame& frame, double y, std::string_view label) {
  svg.line(frame.left, y, frame.right(), y, "grid");
  svg.line(frame.left - kTick, y, frame.left, y, "axis");
  svg.text(frame.left - kTick - kLabelGap, y + 4, Anchor::kEnd, "faint", label);
}

void draw_axis_names(Svg& svg, const Frame& frame, std::string_view x, std::string_view y) {
  svg.text(frame.left + frame.width / 2, frame.bottom() + kNameBelow, Anchor::kMiddle, "ink", x);
  svg.text_upwards(frame.left - kNameLeft, frame.top + frame.height / 2, "ink", y);
}

}  // namespace spb::view
