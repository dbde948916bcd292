// The byte alphabet of GPT-2: how vocabulary files spell bytes as printable characters.
//
// Printable Latin-1 bytes stand for themselves; the other 68 are U+0100, U+0101, ... in order. So a
// space is written U+0120 and a line feed U+010A.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace spb::text {

std::string spell_bytes(std::string_view bytes);

// The bytes a spelling stands for; nothing when a character is outside the alphabet.
std::optional<std::string> unspell_bytes(std::string_view spelling);

}  // namespace spb::text
