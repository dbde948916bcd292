// HtmlPage: a report as one file that needs nothing else: no script, no network, light and dark.
#pragma once

#include <string>
#include <string_view>

#include "view/svg.h"
#include "view/table.h"

namespace spb::view {

class HtmlPage {
 public:
  explicit HtmlPage(std::string_view title);

  // All texts are escaped.
  void heading(std::string_view text);
  void paragraph(std::string_view text);
  void picture(const Svg& svg);
  void table(const Table& table);

  std::string str() const;

 private:
  std::string title_;
  std::string body_;
};

}  // namespace spb::view
