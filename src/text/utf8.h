// UTF-8: decoding that survives any bytes.
//
// Malformed input is replaced by U+FFFD, one for each maximal ill-formed part: the longest prefix
// of a well-formed character that is there, or else a single byte (Unicode, "Best Practices for
// Using U+FFFD"). So a text cut inside a character loses that character only.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace spb::text {

enum class Utf8State {
  kValid,
  kMalformed,   // `length` bytes can be part of no character
  kUnfinished,  // the bytes end inside a character that may still become well formed
};

struct Utf8Character {
  char32_t code_point = 0;  // when kValid
  size_t length = 0;        // bytes it takes, at least 1
  Utf8State state = Utf8State::kMalformed;
};

// The first character of `bytes`, which must not be empty.
Utf8Character decode_utf8(std::string_view bytes);

// Appends a code point of at most U+10FFFF that is no surrogate.
void append_utf8(std::string& out, char32_t code_point);

bool is_utf8(std::string_view bytes);
std::string to_utf8(std::string_view bytes);  // with malformed parts replaced

// Number of bytes at the end that begin an unfinished character: 0 to 3.
size_t unfinished_suffix(std::string_view bytes);

}  // namespace spb::text
