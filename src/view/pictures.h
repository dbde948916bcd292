// Pictures of spikes: pure functions from numbers to drawings.
//
// Usage error when sizes contradict each other or there is nothing to draw. The same input gives
// the same text everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "spike/codec/codec.h"
#include "view/svg.h"

namespace spb::view {

// Which neuron fired when. Time runs over all timesteps of a token, then those of the next one:
// column = (token - first_position) * T + timestep, T the fewest timesteps that hold every count.
struct Raster {
  std::string title;
  std::vector<int64_t> neurons;  // ids, in the order of the rows from the top
  std::vector<int32_t> counts;   // [tokens, neurons]
  int64_t first_position = 0;    // of the first token in its text
  spike::Coding coding = spike::Coding::kBitwiseBidirectional;
  spike::BitOrder order = spike::BitOrder::kMostSignificantFirst;
};
inline constexpr int64_t kMaxRasterColumns = 4096;
inline constexpr int64_t kMaxRasterNeurons = 512;

// Spikes above 0 and below 0 in two colours. Usage error naming the way out when there are more
// columns or rows than above; data error for counts that the coding cannot send.
Svg draw_raster(const Raster& raster);

// Shares of entries by |count|, on a logarithmic scale.
struct HistogramSeries {
  std::string name;
  std::vector<double> shares;  // of |count| = 0, 1, 2, ...; what is 0 is not drawn
  double beyond = 0;           // share of counts that have no bin
};
// Up to five series. Counts lie at log2(1 + count), so that equal steps are bits.
Svg draw_histogram(const std::string& title, const std::vector<HistogramSeries>& series);

// A number for each layer and site.
struct HeatMap {
  std::string title;
  std::string unit;  // of the numbers, for the legend
  std::vector<std::string> rows;
  std::vector<std::string> columns;
  std::string column_name;                    // of the x axis
  std::vector<std::optional<double>> values;  // [rows, columns]; absent ones are left blank
};
Svg draw_heat_map(const HeatMap& map);

// A walk through (x, y), each point with its label.
struct Curve {
  struct Point {
    double x;
    double y;
    std::string label;
  };
  std::string title;
  std::string x_name;
  std::string y_name;
  std::vector<Point> points;
};
Svg draw_curve(const Curve& curve);

}  // namespace spb::view
