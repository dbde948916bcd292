// The raster of draw_raster.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "view/axis.h"
#include "view/pictures.h"

namespace spb::view {
namespace {

constexpr double kLeft = 84;
constexpr double kTop = 84;
constexpr double kRight = 24;
constexpr double kBelow = 56;
constexpr double kLeastWidth = 560;

class RasterDrawing {
 public:
  explicit RasterDrawing(const Raster& raster)
      : raster_(raster),
        neurons_(std::ssize(raster.neurons)),
        tokens_(neurons_ == 0 ? 0 : std::ssize(raster.counts) / neurons_),
        timesteps_(spike::minimal_timesteps(raster.coding, range())) {
    check(tokens_ > 0 && tokens_ * neurons_ == std::ssize(raster.counts),
          "raster: counts: expected some for each of {} neurons, got {}", neurons_,
          raster.counts.size());
    check(neurons_ <= kMaxRasterNeurons, "raster: neurons: expected at most {}, got {}",
          kMaxRasterNeurons, neurons_);
    check(tokens_ <= kMaxRasterColumns / timesteps_,
          "raster: expected at most {} columns, got {} tokens of {} timesteps; a bitwise coding or "
          "fewer tokens need fewer",
          kMaxRasterColumns, tokens_, timesteps_);
    const auto columns = static_cast<double>(tokens_ * timesteps_);
    cell_width_ = std::clamp(960 / columns, 1.5, 9.0);
    cell_height_ = neurons_ <= 40 ? 12 : neurons_ <= 96 ? 8 : 4;
    frame_ = {kLeft, kTop, columns * cell_width_, static_cast<double>(neurons_) * cell_height_};
  }

  Svg draw() {
    const double width = std::max(frame_.right() + kRight, kLeastWidth);
    Svg svg(width, frame_.bottom() + kBelow, raster_.title);
    svg.text(kLeft, 24, Anchor::kStart, "head", raster_.title);
    draw_legend(svg);
    draw_time(svg);
    draw_neurons(svg);
    svg.path(spikes(1), "fill0");
    svg.path(spikes(-1), "fill1");
    svg.rect(frame_.left, frame_.top, frame_.width, frame_.height, "frame");
    return svg;
  }

 private:
  spike::CountRange range() const {
    spike::CountRange range;
    for (const int32_t count : raster_.counts) {
      range.lowest = std::min(range.lowest, count);
      range.highest = std::max(range.highest, count);
    }
    return range;
  }

  double x_of(int64_t token) const {
    return frame_.left + static_cast<double>(token * timesteps_) * cell_width_;
  }

  void draw_legend(Svg& svg) const {
    const double y = 38;
    svg.rect(kLeft, y, 10, 10, "fill0");
    svg.text(kLeft + 16, y + 9, Anchor::kStart, "ink", "spike +1");
    double next = kLeft + 84;
    if (spike::has_negative_spikes(raster_.coding)) {
      svg.rect(next, y, 10, 10, "fill1");
      svg.text(next + 16, y + 9, Anchor::kStart, "ink", "spike \u22121");
      next += 84;
    }
    const bool msb = raster_.order == spike::BitOrder::kMostSignificantFirst;
    svg.text(next, y + 9, Anchor::kStart, "faint",
             fmt::format("{} coding{}, T = {} timesteps a token", name(raster_.coding),
                         !spike::is_bitwise(raster_.coding) ? ""
                         : msb                              ? ", highest bit first"
                                                            : ", lowest bit first",
                         timesteps_));
  }

  // Bands of tokens; positions above, timesteps below.
  void draw_time(Svg& svg) const {
    const int most = std::clamp(static_cast<int>(frame_.width / 60), 2, 16);
    const std::vector<double> ticks = round_ticks({0, static_cast<double>(tokens_)},
                                                  std::min<int>(most, static_cast<int>(tokens_)));
    for (int64_t token = 1; token < tokens_; token += 2) {
      svg.rect(x_of(token), frame_.top, static_cast<double>(timesteps_) * cell_width_,
               frame_.height, "band");
    }
    for (const double tick : ticks) {
      const auto token = static_cast<int64_t>(tick);
      const double x = x_of(token);
      svg.line(x, frame_.bottom(), x, frame_.bottom() + 4, "axis");
      svg.text(x, frame_.bottom() + 16, Anchor::kMiddle, "faint",
               fmt::to_string((raster_.first_position + token) * timesteps_));
      if (token == tokens_) continue;
      svg.text(x + static_cast<double>(timesteps_) * cell_width_ / 2, frame_.top - 6,
               Anchor::kMiddle, "faint", fmt::to_string(raster_.first_position + token));
    }
    svg.text(frame_.left + frame_.width / 2, frame_.bottom() + 38, Anchor::kMiddle, "ink",
             "time (timesteps) = position \u00d7 T + timestep");
    svg.text(frame_.left, frame_.top - 20, Anchor::kStart, "faint", "token position");
  }

  void draw_neurons(Svg& svg) const {
    const auto every = static_cast<int64_t>(std::ceil(12 / cell_height_));
    for (int64_t row = 0; row < neurons_; row += every) {
      svg.text(frame_.left - 6, frame_.top + (static_cast<double>(row) + 0.5) * cell_height_ + 4,
               Anchor::kEnd, "faint", fmt::to_string(raster_.neurons[static_cast<size_t>(row)]));
    }
    svg.text_upwards(22, frame_.top + frame_.height / 2, "ink", "neuron (channel)");
  }

  // Runs of neighbouring spikes of one sign become one bar.
  std::string spikes(int sign) const {
    std::string commands;
    for (int64_t row = 0; row < neurons_; ++row) {
      int64_t run = 0;
      for (int64_t column = 0; column <= tokens_ * timesteps_; ++column) {
        if (column < tokens_ * timesteps_ && spike(row, column) == sign) {
          ++run;
          continue;
        }
        if (run > 0) commands += bar(row, column - run, run);
        run = 0;
      }
    }
    return commands;
  }

  int spike(int64_t row, int64_t column) const {
    const int64_t token = column / timesteps_;
    const int32_t count = raster_.counts[static_cast<size_t>(token * neurons_ + row)];
    return spike::spike_at(raster_.coding, raster_.order, count, column % timesteps_, timesteps_);
  }

  std::string bar(int64_t row, int64_t column, int64_t length) const {
    const double gap = cell_height_ * 0.12;
    return fmt::format("M{:.2f} {:.2f}h{:.2f}v{:.2f}h-{:.2f}z",
                       frame_.left + static_cast<double>(column) * cell_width_,
                       frame_.top + static_cast<double>(row) * cell_height_ + gap,
                       static_cast<double>(length) * cell_width_, cell_height_ - 2 * gap,
                       static_cast<double>(length) * cell_width_);
  }

  const Raster& raster_;
  int64_t neurons_;
  int64_t tokens_;
  int64_t timesteps_;
  double cell_width_ = 0;
  double cell_height_ = 0;
  Frame frame_;
};

}  // namespace

Svg draw_raster(const Raster& raster) { return RasterDrawing(raster).draw(); }

}  // namespace spb::view
