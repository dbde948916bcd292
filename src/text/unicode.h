// Unicode: normalisation form C and the character classes that tokenizers ask for.
//
// All text is well-formed UTF-8 (see utf8.h).
#pragma once

#include <string>
#include <string_view>

namespace spb::text {

// True when normalize_nfc may change the text; false is certain. Fast: looks at bytes only.
bool may_change_in_nfc(std::string_view text);

// Canonical decomposition, then composition. O(n log n) for any text, also for long runs of
// combining marks.
std::string normalize_nfc(std::string_view text);

// The property White_Space. The list is also what the regular expressions of pretokenizer.cpp use.
bool is_white_space(char32_t code_point);

// A letter, mark, decimal digit, letter number, connector or joiner: \w of Unicode TS 18.
bool is_word_character(char32_t code_point);

}  // namespace spb::text
