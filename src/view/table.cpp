#include "view/table.h"

#include <algorithm>

#include "core/error.h"

namespace spb::view {
namespace {

// Characters, not bytes: cells may hold UTF-8.
size_t width_of(const std::string& cell) {
  return static_cast<size_t>(std::count_if(cell.begin(), cell.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

std::string line_of(const std::vector<std::string>& cells, const std::vector<size_t>& widths) {
  std::string line;
  for (size_t i = 0; i < cells.size(); ++i) {
    const std::string gap(widths[i] - width_of(cells[i]), ' ');
    line += i == 0 ? "  " + cells[i] + gap : "  " + gap + cells[i];
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line + '\n';
}

}  // namespace

std::string to_text(const Table& table) {
  std::vector<size_t> widths;
  for (const std::string& column : table.columns) widths.push_back(width_of(column));
  for (const auto& row : table.rows) {
    check(row.size() == widths.size(), "table: {}: expected {} cells, got {}", table.title,
          widths.size(), row.size());
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::string text = table.title.empty() ? "" : table.title + '\n';
  text += line_of(table.columns, widths);
  for (const auto& row : table.rows) text += line_of(row, widths);
  for (size_t at = 0; at < table.note.size();) {
    const size_t end = std::min(table.note.find('\n', at), table.note.size());
    text += "  " + table.note.substr(at, end - at) + '\n';
    at = end + 1;
  }
  return text;
}

}  // namespace spb::view
