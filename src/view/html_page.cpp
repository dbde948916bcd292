#include "view/html_page.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace spb::view {
namespace {

constexpr std::string_view kPageStyle =
    ":root{color-scheme:light dark}"
    "body{margin:0 auto;padding:24px 20px 64px;max-width:1080px;background:#ffffff;color:#1c2024;"
    "font:15px/1.5 system-ui,'Segoe UI',Helvetica,Arial,sans-serif}"
    "h1{font-size:24px;line-height:1.25;overflow-wrap:anywhere}"
    "h2{font-size:19px;margin:40px 0 8px}p{max-width:72ch}"
    ".scroll{overflow-x:auto;margin:12px 0}.scroll svg{display:block}"
    "table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;font-weight:600;padding:6px 0;font-size:14px}"
    "th,td{padding:4px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid #dde2e7}"
    "th{color:#5c6670;font-weight:600}th:first-child,td:first-child{text-align:left}"
    ".note{font-size:13px;color:#5c6670;white-space:pre-line}"
    "@media (prefers-color-scheme:dark){body{background:#14181c;color:#e8ecf0}"
    "th,td{border-color:#2b333b}th,.note{color:#a3adb8}}";

std::string row_of(const std::vector<std::string>& cells, std::string_view tag) {
  std::string row = "<tr>";
  for (const std::string& cell : cells) {
    row += fmt::format("<{0}>{1}</{0}>", tag, escape_markup(cell));
  }
  return row + "</tr>\n";
}

}  // namespace

HtmlPage::HtmlPage(std::string_view title) : title_(escape_markup(title)) {}

void HtmlPage::heading(std::string_view text) {
  body_ += fmt::format("<h2>{}</h2>\n", escape_markup(text));
}

void HtmlPage::paragraph(std::string_view text) {
  body_ += fmt::format("<p>{}</p>\n", escape_markup(text));
}

void HtmlPage::picture(const Svg& svg) {
  body_ += fmt::format("<div class=\"scroll\">{}</div>\n", svg.str());
}

void HtmlPage::table(const Table& table) {
  body_ += fmt::format("<div class=\"scroll\"><table><caption>{}</caption>\n<thead>{}</thead>\n",
                       escape_markup(table.title), row_of(table.columns, "th"));
  for (const auto& row : table.rows) body_ += row_of(row, "td");
  body_ += "</table></div>\n";
  std::string note;
  for (size_t at = 0; at < table.note.size();) {
    const size_t end = std::min(table.note.find('\n', at), table.note.size());
    note += escape_markup(std::string_view(table.note).substr(at, end - at)) + '\n';
    at = end + 1;
  }
  if (!note.empty()) body_ += fmt::format("<p class=\"note\">{}</p>\n", note);
}

std::string HtmlPage::str() const {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
      "<title>{0}</title>\n<style>{1}</style></head>\n<body>\n<h1>{0}</h1>\n{2}</body>\n"
      "</html>\n",
      title_, kPageStyle, body_);
}

}  // namespace spb::view
