// AddedTokenMatcher: cuts a text at the tokens that were added to a vocabulary.
//
// At the leftmost place where one begins, the longest wins. Time is linear in the text times the
// length of the longest token, which is limited when a tokenizer is loaded.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace spb::text {

struct AddedTokenRule {
  AddedToken token;
  bool lstrip = false;       // takes the white space in front of it, too
  bool rstrip = false;       // takes the white space behind it, too
  bool single_word = false;  // not inside a word
  bool normalized = false;   // is looked for after normalisation of the text
};

class AddedTokenMatcher {
 public:
  static constexpr size_t kLongestContent = 512;  // bytes

  struct Part {
    std::string_view text;
    int32_t id = -1;  // -1: ordinary text
  };

  AddedTokenMatcher() = default;
  // No content may be empty. Of rules with the same content the first counts.
  explicit AddedTokenMatcher(std::vector<AddedTokenRule> rules);

  bool empty() const { return rules_.empty(); }
  const AddedTokenRule* find(std::string_view content) const;

  // Appends the parts of `text`, well-formed UTF-8, to `parts`. They are views into it.
  void split(std::string_view text, std::vector<Part>& parts) const;

 private:
  const AddedTokenRule* longest_at(std::string_view text) const;

  std::vector<AddedTokenRule> rules_;  // sorted by content
  std::array<bool, 256> begins_{};     // some content begins with this byte
};

}  // namespace spb::text
