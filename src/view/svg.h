// Svg: a picture as text, drawn shape by shape in user units of one CSS pixel.
//
// Colours are classes of a style sheet that follows the reader's light or dark mode. Every picture
// carries it, so that one cut out of a page looks the same. Every text is escaped.
#pragma once

#include <string>
#include <string_view>

namespace spb::view {

// Text between tags or in quotes: & < > " ' become entities, what XML cannot hold becomes "?".
std::string escape_markup(std::string_view text);

enum class Anchor { kStart, kMiddle, kEnd };

class Svg {
 public:
  // `title` is what a screen reader says.
  Svg(double width, double height, std::string_view title);

  // Classes are listed in svg.cpp. Numbers are rounded to hundredths.
  void rect(double x, double y, double width, double height, std::string_view css);
  void cell(double x, double y, double width, double height, const std::string& color,
            std::string_view tooltip);
  void line(double x1, double y1, double x2, double y2, std::string_view css);
  void path(const std::string& commands, std::string_view css);
  void dot(double x, double y, double radius, std::string_view css);
  void text(double x, double y, Anchor anchor, std::string_view css, std::string_view text);
  // Reads upwards, centred on the point.
  void text_upwards(double x, double y, std::string_view css, std::string_view text);

  std::string str() const;  // a whole file, or a part of a page

  double width() const { return width_; }
  double height() const { return height_; }

 private:
  double width_;
  double height_;
  std::string title_;
  std::string shapes_;
};

}  // namespace spb::view
