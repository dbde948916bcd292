// Axes: where numbers lie on a picture, and the round numbers that are written beside it.
#pragma once

#include <string>
#include <vector>

#include "view/svg.h"

namespace spb::view {

// The rectangle that holds the curves.
struct Frame {
  double left = 0;
  double top = 0;
  double width = 0;
  double height = 0;
  double right() const { return left + width; }
  double bottom() const { return top + height; }
};

struct Range {
  double low = 0;
  double high = 1;
  bool contains(double value) const { return value >= low && value <= high; }
};

// The range of the values with a margin on both sides; [0, 1] around nothing, never empty.
Range range_of(const std::vector<double>& values, double margin);

// At most `most` multiples of 1, 2 or 5 times a power of ten inside the range, ascending.
std::vector<double> round_ticks(Range range, int most);

// As few decimals as tell the ticks apart.
std::string tick_label(double value, const std::vector<double>& ticks);

// A tick with its label, and a grid line across the frame.
void draw_x_tick(Svg& svg, const Frame& frame, double x, std::string_view label);
void draw_y_tick(Svg& svg, const Frame& frame, double y, std::string_view label);

// Names of the axes, left of and below the labels of the ticks.
void draw_axis_names(Svg& svg, const Frame& frame, std::string_view x, std::string_view y);

}  // namespace spb::view
