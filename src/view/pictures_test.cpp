#include "view/pictures.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/error.h"
#include "core/test_errors.h"
#include "view/axis.h"
#include "view/html_page.h"

namespace spb::view {
namespace {

using test::message_of;

int64_t occurrences(const std::string& text, const std::string& part) {
  int64_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

// Every tag that opens closes, in order; attributes are quoted and nothing is not finite.
void expect_well_formed(const std::string& markup) {
  std::vector<std::string> open;
  for (size_t at = markup.find('<'); at != std::string::npos; at = markup.find('<', at + 1)) {
    const std::string tag = markup.substr(at, markup.find('>', at) + 1 - at);
    if (tag[1] == '!') continue;  // <!doctype html>
    const size_t first = tag[1] == '/' ? 2 : 1;
    const std::string name = tag.substr(first, tag.find_first_of(" />", first) - first);
    EXPECT_EQ(occurrences(tag, "\"") % 2, 0) << tag;
    if (first == 2) {
      ASSERT_FALSE(open.empty()) << tag;
      EXPECT_EQ(open.back(), name);
      open.pop_back();
    } else if (!tag.ends_with("/>") && name != "meta") {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty());
  for (const char* bad : {"nan", "inf\"", "e+"})
    EXPECT_EQ(markup.find(bad), std::string::npos) << bad;
}

// Every coordinate lies on the picture.
void expect_inside(const Svg& svg) {
  const std::string markup = svg.str();
  for (const char* attribute : {" x", " x1", " x2", " cx", " y", " y1", " y2", " cy"}) {
    const std::string key = std::string(attribute) + "=\"";
    for (size_t at = markup.find(key); at != std::string::npos; at = markup.find(key, at + 1)) {
      const double value = std::stod(markup.substr(at + key.size(), 32));
      EXPECT_GE(value, 0) << markup.substr(at, 32);
      EXPECT_LE(value, key.find('x') < 3 ? svg.width() : svg.height()) << markup.substr(at, 32);
    }
  }
}

void expect_picture(const Svg& svg) {
  expect_well_formed(svg.str());
  expect_inside(svg);
  EXPECT_NE(svg.str().find("prefers-color-scheme"), std::string::npos);
}

// (x, width) of the bars of one colour.
std::vector<std::pair<double, double>> bars(const Svg& svg, const std::string& css) {
  const std::string markup = svg.str();
  const size_t at = markup.find("<path class=\"" + css);
  const std::string commands = markup.substr(at, markup.find("/>", at) - at);
  std::vector<std::pair<double, double>> found;
  for (size_t bar = commands.find('M'); bar != std::string::npos; bar = commands.find('M', bar + 1))
    found.emplace_back(std::stod(commands.substr(bar + 1)),
                       std::stod(commands.substr(commands.find('h', bar) + 1)));
  return found;
}

Raster small_raster() {
  // Two tokens, three neurons: counts need 3 bits.
  return {"raster",
          {4, 9, 1000},
          {5, -1, 0, 0, 3, -4},
          0,
          spike::Coding::kBitwiseBidirectional,
          spike::BitOrder::kMostSignificantFirst};
}

TEST(Pictures, RasterDrawsEverySpikeAtItsTime) {
  const Svg svg = draw_raster(small_raster());
  expect_picture(svg);
  // 5 = 101, 3 = 011 whose two spikes are neighbours; -1 = 001, -4 = 100.
  const auto positive = bars(svg, "fill0"), negative = bars(svg, "fill1");
  ASSERT_EQ(positive.size(), 3u);
  ASSERT_EQ(negative.size(), 2u);
  const double left = positive[0].first, width = positive[0].second;
  EXPECT_NEAR(positive[1].first, left + 2 * width, 0.02);
  EXPECT_NEAR(positive[2].first, left + 4 * width, 0.02);
  EXPECT_NEAR(positive[2].second, 2 * width, 0.02);
  EXPECT_NEAR(negative[0].first, left + 2 * width, 0.02);
  EXPECT_NEAR(negative[1].first, left + 3 * width, 0.02);
  for (const char* id : {">4<", ">9<", ">1000<"}) {
    EXPECT_NE(svg.str().find(id), std::string::npos) << id;
  }
}

TEST(Pictures, RasterFollowsCodingAndBitOrder) {
  Raster raster = small_raster();
  raster.order = spike::BitOrder::kLeastSignificantFirst;
  const auto lsb = bars(draw_raster(raster), "fill0");
  EXPECT_NEAR(lsb[2].first, lsb[0].first + 3 * lsb[0].second, 0.02);  // 3 = 110
  raster.coding = spike::Coding::kTernary;
  const Svg ternary = draw_raster(raster);
  EXPECT_NEAR(bars(ternary, "fill0")[0].second, 5 * 9, 0.02);
  EXPECT_NE(ternary.str().find("T = 5 timesteps"), std::string::npos);
  raster.coding = spike::Coding::kBitwise;
  EXPECT_NE(message_of([&] { draw_raster(raster); }).find("below 0"), std::string::npos);
}

TEST(Pictures, RasterRefusesWhatDoesNotFit) {
  Raster raster = small_raster();
  raster.counts.pop_back();
  EXPECT_NE(message_of([&] { draw_raster(raster); }).find("raster: counts"), std::string::npos);
  raster = small_raster();
  raster.counts[0] = 1 << 20;
  raster.coding = spike::Coding::kTernary;
  EXPECT_NE(message_of([&] { draw_raster(raster); }).find("bitwise coding"), std::string::npos);
  raster.counts.clear();
  raster.neurons.clear();
  EXPECT_NE(message_of([&] { draw_raster(raster); }), "nothing was thrown");
}

TEST(Pictures, HistogramHeatMapAndCurveAreWellFormed) {
  std::vector<double> shares(128, 0.0);
  for (int c = 0; c < 128; ++c)
    shares[static_cast<size_t>(c)] = c % 9 == 8 ? 0 : std::exp(-0.1 * c);
  expect_picture(draw_histogram("h", {{"a", shares, 1e-5}, {"b", {1.0}, 0}}));
  expect_picture(draw_histogram("h", {{"only silence", {1.0}, 0}}));
  HeatMap map{"m", "spikes", {"a", "b"}, {"0", "1", "2"}, "layer", {1, 2, {}, 4, {}, 6}};
  const Svg heat = draw_heat_map(map);
  expect_picture(heat);
  EXPECT_EQ(occurrences(heat.str(), "layer 2, b: 6 spikes"), 1);
  map.values.assign(6, 3.0);
  expect_picture(draw_heat_map(map));
  const Curve curve{"c", "x", "y", {{0.7, 40, "k = 2"}, {0.5, 38, "k = 4"}}};
  expect_picture(draw_curve(curve));
  expect_picture(draw_curve({"c", "x", "y", {{0.7, 40, "k = 2"}}}));
}

TEST(Pictures, RefuseNothingToDraw) {
  EXPECT_NE(message_of([] { draw_histogram("h", {}); }), "nothing was thrown");
  EXPECT_NE(message_of([] { draw_histogram("h", {{"a", {}, 0}}); }), "nothing was thrown");
  EXPECT_NE(message_of([] {
              draw_heat_map({"m", "u", {"a"}, {"0"}, "layer", {}});
            }),
            "nothing was thrown");
  EXPECT_NE(message_of([] {
              draw_heat_map({"m", "u", {"a"}, {"0"}, "layer", {{}}});
            }),
            "nothing was thrown");
  EXPECT_NE(message_of([] { draw_curve({"c", "x", "y", {}}); }), "nothing was thrown");
}

TEST(Pictures, TextsAreEscapedEverywhere) {
  const std::string hostile = "<script>alert('\"&\x01\xff')</script>";
  Raster raster = small_raster();
  raster.title = hostile;
  const HeatMap map{hostile, hostile, {hostile}, {hostile}, hostile, {1.0}};
  const Table table{hostile, {hostile, hostile}, {{hostile, hostile}}, hostile + "\n" + hostile};
  HtmlPage page(hostile);
  page.heading(hostile);
  page.paragraph(hostile);
  page.table(table);
  for (const Svg& svg :
       {draw_raster(raster), draw_histogram(hostile, {{hostile, {1.0}, 0}}), draw_heat_map(map),
        draw_curve({hostile, hostile, hostile, {{1, 1, hostile}}})}) {
    expect_well_formed(svg.str());
    page.picture(svg);
  }
  const std::string html = page.str();
  expect_well_formed(html);
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find('\x01'), std::string::npos);
  EXPECT_EQ(html.find('\xff'), std::string::npos);
  for (const char* outside : {"src=", "href=", "@import", "url("}) {
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  }
}

TEST(Axis, TicksAreRoundAndInside) {
  EXPECT_EQ(round_ticks({0, 10}, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  for (const Range range :
       {Range{0.528, 0.664}, Range{38.2, 43.9}, Range{-3, 1e6}, Range{0, 1e-7}}) {
    const std::vector<double> ticks = round_ticks(range, 6);
    EXPECT_GE(ticks.size(), 2u);
    EXPECT_LE(ticks.size(), 7u);
    for (const double tick : ticks) {
      EXPECT_GE(tick, range.low - 1e-9);
      EXPECT_LE(tick, range.high + 1e-9 * std::fabs(range.high));
    }
  }
  EXPECT_EQ(tick_label(0.55, {0.5, 0.55}), "0.55");
  EXPECT_EQ(tick_label(4000, {2000, 4000}), "4000");
}

TEST(Table, PadsColumnsByCharacters) {
  const Table table{"T", {"", "one"}, {{"a\u00e9", "1"}, {"b", "1234"}}, "n"};
  EXPECT_EQ(to_text(table), "T\n       one\n  a\u00e9     1\n  b   1234\n  n\n");
  EXPECT_NE(message_of([] { to_text({"T", {"a", "b"}, {{"1"}}, ""}); }), "nothing was thrown");
}

}  // namespace
}  // namespace spb::view
