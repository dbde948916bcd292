#include "view/svg.h"

#include <fmt/format.h>

#include <cmath>

#include "core/error.h"

namespace spb::view {
namespace {

// Two decimals without trailing zeros, and never "-0".
std::string number(double value) {
  const double rounded = std::round(value * 100) / 100;
  return fmt::format("{:g}", rounded == 0 ? 0.0 : rounded);
}

std::string_view name(Anchor anchor) {
  switch (anchor) {
    case Anchor::kMiddle: return "middle";
    case Anchor::kEnd: return "end";
    case Anchor::kStart: break;
  }
  return "start";
}

std::string_view entity(char c) {
  switch (c) {
    case '&': return "&amp;";
    case '<': return "&lt;";
    case '>': return "&gt;";
    case '"': return "&quot;";
    case '\'': return "&#39;";
    default: return {};
  }
}

// Colours that people with any colour vision tell apart (Okabe and Ito), lighter on dark paper.
constexpr std::string_view kStyle =
    ".pic{font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif}"
    ".pic .paper{fill:#ffffff}.pic .ink{fill:#1c2024;font-size:12px}"
    ".pic .head{fill:#1c2024;font-size:15px;font-weight:600}"
    ".pic .faint{fill:#5c6670;font-size:11px}.pic .on-dark{fill:#ffffff;font-size:9px}"
    ".pic .on-light{fill:#1c2024;font-size:9px}"
    ".pic .axis{stroke:#5c6670;stroke-width:1;fill:none}"
    ".pic .grid{stroke:#dde2e7;stroke-width:1;fill:none}"
    ".pic .band{fill:#eef2f6}.pic .frame{stroke:#aab3bc;stroke-width:1;fill:none}"
    ".pic .fill0{fill:#0072b2}.pic .fill1{fill:#d55e00}"
    ".pic .curve0,.pic .curve1,.pic .curve2,.pic .curve3,.pic .curve4"
    "{fill:none;stroke-width:1.8;stroke-linejoin:round}"
    ".pic .curve0{stroke:#0072b2}.pic .curve1{stroke:#d55e00}.pic .curve2{stroke:#009e73}"
    ".pic .curve3{stroke:#b8860b;stroke-dasharray:6 3}"
    ".pic .curve4{stroke:#a4508b;stroke-dasharray:2 3}"
    "@media (prefers-color-scheme:dark){.pic .paper{fill:#14181c}"
    ".pic .ink,.pic .head{fill:#e8ecf0}.pic .faint{fill:#a3adb8}"
    ".pic .axis{stroke:#a3adb8}.pic .grid{stroke:#2b333b}.pic .band{fill:#1e252c}"
    ".pic .frame{stroke:#4a545e}.pic .fill0{fill:#56b4e9}.pic .fill1{fill:#ff8c42}"
    ".pic .curve0{stroke:#56b4e9}.pic .curve1{stroke:#ff8c42}.pic .curve2{stroke:#2fc99a}"
    ".pic .curve3{stroke:#e6c04a}.pic .curve4{stroke:#d78fc0}}";

}  // namespace

std::string escape_markup(std::string_view text) {
  std::string out;
  for (const char c : printable(text, text.size() * 4 + 4)) {
    const std::string_view escaped = entity(c);
    if (escaped.empty()) {
      out += c;
    } else {
      out += escaped;
    }
  }
  return out;
}

Svg::Svg(double width, double height, std::string_view title)
    : width_(width), height_(height), title_(escape_markup(title)) {
  rect(0, 0, width, height, "paper");
}

void Svg::rect(double x, double y, double width, double height, std::string_view css) {
  shapes_ += fmt::format("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n", css,
                         number(x), number(y), number(width), number(height));
}

void Svg::cell(double x, double y, double width, double height, const std::string& color,
               std::string_view tooltip) {
  shapes_ += fmt::format(
      "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"><title>{}</title></rect>\n",
      number(x), number(y), number(width), number(height), escape_markup(color),
      escape_markup(tooltip));
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view css) {
  shapes_ += fmt::format("<line class=\"{}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>\n", css,
                         number(x1), number(y1), number(x2), number(y2));
}

void Svg::path(const std::string& commands, std::string_view css) {
  shapes_ += fmt::format("<path class=\"{}\" d=\"{}\"/>\n", css, escape_markup(commands));
}

void Svg::dot(double x, double y, double radius, std::string_view css) {
  shapes_ += fmt::format("<circle class=\"{}\" cx=\"{}\" cy=\"{}\" r=\"{}\"/>\n", css, number(x),
                         number(y), number(radius));
}

void Svg::text(double x, double y, Anchor anchor, std::string_view css, std::string_view text) {
  shapes_ += fmt::format("<text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"{}\">{}</text>\n", css,
                         number(x), number(y), name(anchor), escape_markup(text));
}

void Svg::text_upwards(double x, double y, std::string_view css, std::string_view text) {
  shapes_ += fmt::format(
      "<text class=\"{}\" transform=\"translate({} {}) rotate(-90)\" "
      "text-anchor=\"middle\">{}</text>\n",
      css, number(x), number(y), escape_markup(text));
}

std::string Svg::str() const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"pic\" role=\"img\" width=\"{0}\" "
      "height=\"{1}\" viewBox=\"0 0 {0} {1}\"><title>{2}</title>\n<style>{3}</style>\n{4}</svg>\n",
      number(width_), number(height_), title_, kStyle, shapes_);
}

}  // namespace spb::view
