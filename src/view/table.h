// Table: rows of text under column heads, for a terminal and for a page.
#pragma once

#include <string>
#include <vector>

namespace spb::view {

struct Table {
  std::string title;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;  // as many cells as columns
  std::string note;                            // lines below the table; may be empty
};

// Columns padded to the widest cell: the first one flush left, the others flush right. Ends with a
// line break. Usage error when a row has another number of cells than there are columns.
std::string to_text(const Table& table);

}  // namespace spb::view
