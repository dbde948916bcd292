#include "core/error.h"

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

namespace spb {

namespace {

struct Character {
  uint32_t code;
  size_t bytes;
};

// The UTF-8 character at the start of `text`, or 0 bytes if what stands there is not one.
Character decode(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || bytes > text.size()) return {0, 0};
  uint32_t code = lead & (0x7fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0u) != 0x80u) return {0, 0};
    code = code << 6 | (byte(i) & 0x3fu);
  }
  constexpr std::array<uint32_t, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  if (code < kLeast[bytes] || code > 0x10ffff || surrogate) return {0, 0};
  return {code, bytes};
}

// Characters that would move the cursor, break the line or reverse the text around them.
bool misleads(uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x200b && code <= 0x200f) ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2060 && code <= 0x206f) || code == 0xfeff;
}

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  size_t i = 0;
  while (i < text.size()) {
    const Character c = decode(text.substr(i));
    const bool plain = c.bytes > 0 && !misleads(c.code);
    const std::string_view piece = text.substr(i, plain ? c.bytes : 1);
    const std::string shown =
        plain ? std::string(piece)
              : fmt::format("\\x{:02x}", static_cast<unsigned char>(piece.front()));
    if (out.size() + shown.size() > max_bytes) return out + "...";
    out += shown;
    i += piece.size();
  }
  return out;
}

void throw_system_error(const std::string& operation) {
  const int code = errno;
  throw Error(ErrorKind::kSystem, fmt::format("{}: {}", operation, std::strerror(code)));
}

}  // namespace spb
