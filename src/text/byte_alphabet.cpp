#include "text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "text/utf8.h"

namespace spb::text {
namespace {

constexpr int kAlphabetEnd = 0x100 + 68;

constexpr bool spells_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
}

struct Alphabet {
  std::array<uint16_t, 256> character{};        // of a byte
  std::array<int16_t, kAlphabetEnd> byte_of{};  // of a character, -1: none
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (auto& byte : alphabet.byte_of) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const int character = spells_itself(byte) ? byte : next++;
    alphabet.character[static_cast<size_t>(byte)] = static_cast<uint16_t>(character);
    alphabet.byte_of[static_cast<size_t>(character)] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string spell_bytes(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char byte : bytes) {
    append_utf8(out, kAlphabet.character[static_cast<unsigned char>(byte)]);
  }
  return out;
}

std::optional<std::string> unspell_bytes(std::string_view spelling) {
  std::string out;
  out.reserve(spelling.size());
  while (!spelling.empty()) {
    const Utf8Character character = decode_utf8(spelling);
    spelling.remove_prefix(character.length);
    if (character.state != Utf8State::kValid || character.code_point >= kAlphabetEnd) return {};
    const int byte = kAlphabet.byte_of[character.code_point];
    if (byte < 0) return {};
    out += static_cast<char>(byte);
  }
  return out;
}

}  // namespace spb::text
