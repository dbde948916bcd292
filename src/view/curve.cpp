// The curve of draw_curve.
#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "view/axis.h"
#include "view/pictures.h"

namespace spb::view {
namespace {

struct Place {
  double x;
  double y;
};

// Where the curve does not pass: on the outer side of a bend, on the upper side of a slope.
void draw_label(Svg& svg, const std::vector<Place>& places, size_t index, std::string_view label) {
  const Place at = places[index];
  const Place before = places[index == 0 ? 0 : index - 1];
  const Place after = places[std::min(index + 1, places.size() - 1)];
  if (before.y < at.y && after.y < at.y) {
    svg.text(at.x, at.y + 20, Anchor::kMiddle, "ink", label);
  } else if (before.y >= at.y && after.y >= at.y) {
    svg.text(at.x, at.y - 10, Anchor::kMiddle, "ink", label);
  } else {
    const bool rises = (after.y < before.y) == (after.x > before.x);
    svg.text(at.x + (rises ? -8 : 8), at.y - 8, rises ? Anchor::kEnd : Anchor::kStart, "ink",
             label);
  }
}

}  // namespace

Svg draw_curve(const Curve& curve) {
  check(!curve.points.empty(), "curve: expected some points");
  const Frame frame{84, 48, 560, 300};
  std::vector<double> xs, ys;
  for (const Curve::Point& point : curve.points) {
    xs.push_back(point.x);
    ys.push_back(point.y);
  }
  const Range x_range = range_of(xs, 0.12);
  const Range y_range = range_of(ys, 0.15);
  const auto x_of = [&](double x) {
    return frame.left + (x - x_range.low) / (x_range.high - x_range.low) * frame.width;
  };
  const auto y_of = [&](double y) {
    return frame.bottom() - (y - y_range.low) / (y_range.high - y_range.low) * frame.height;
  };
  Svg svg(frame.right() + 40, frame.bottom() + 56, curve.title);
  svg.text(frame.left, 24, Anchor::kStart, "head", curve.title);
  const std::vector<double> x_ticks = round_ticks(x_range, 8), y_ticks = round_ticks(y_range, 6);
  for (const double tick : x_ticks) draw_x_tick(svg, frame, x_of(tick), tick_label(tick, x_ticks));
  for (const double tick : y_ticks) draw_y_tick(svg, frame, y_of(tick), tick_label(tick, y_ticks));
  svg.rect(frame.left, frame.top, frame.width, frame.height, "frame");
  draw_axis_names(svg, frame, curve.x_name, curve.y_name);
  std::string commands;
  std::vector<Place> places;
  for (const Curve::Point& point : curve.points) {
    places.push_back({x_of(point.x), y_of(point.y)});
    commands += fmt::format("{}{:.2f} {:.2f}", commands.empty() ? "M" : "L", places.back().x,
                            places.back().y);
  }
  svg.path(commands, "curve0");
  for (size_t i = 0; i < places.size(); ++i) {
    svg.dot(places[i].x, places[i].y, 4, "fill0");
    draw_label(svg, places, i, curve.points[i].label);
  }
  return svg;
}

}  // namespace spb::view
