#include "text/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace spb::text {
namespace {

constexpr char32_t kReplacement = 0xfffd;

// What may follow a first byte: the number of bytes in all, and the range of the second one, which
// excludes overlong forms, surrogates and code points past U+10FFFF.
struct Lead {
  size_t length;
  uint8_t second_low;
  uint8_t second_high;
};

Lead lead_of(uint8_t byte) {
  if (byte >= 0xc2 && byte <= 0xdf) return {2, 0x80, 0xbf};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte >= 0xe1 && byte <= 0xef) return {3, 0x80, 0xbf};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte >= 0xf1 && byte <= 0xf3) return {4, 0x80, 0xbf};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

// Number of ASCII bytes at the start, looked at eight at a time.
size_t ascii_prefix(std::string_view bytes) {
  size_t done = 0;
  for (; done + 8 <= bytes.size(); done += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + done, 8);
    if ((word & 0x8080808080808080ull) != 0) break;
  }
  while (done < bytes.size() && static_cast<uint8_t>(bytes[done]) < 0x80) ++done;
  return done;
}

// Number of bytes at the start that are well formed.
size_t valid_prefix(std::string_view bytes) {
  size_t done = 0;
  while (true) {
    done += ascii_prefix(bytes.substr(done));
    if (done == bytes.size()) return done;
    const Utf8Character character = decode_utf8(bytes.substr(done));
    if (character.state != Utf8State::kValid) return done;
    done += character.length;
  }
}

}  // namespace

Utf8Character decode_utf8(std::string_view bytes) {
  const auto first = static_cast<uint8_t>(bytes[0]);
  if (first < 0x80) return {first, 1, Utf8State::kValid};
  const Lead lead = lead_of(first);
  if (lead.length == 0) return {0, 1, Utf8State::kMalformed};
  char32_t code_point = first & (0x7fu >> lead.length);
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {0, i, Utf8State::kUnfinished};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t low = i == 1 ? lead.second_low : 0x80;
    const uint8_t high = i == 1 ? lead.second_high : 0xbf;
    if (byte < low || byte > high) return {0, i, Utf8State::kMalformed};
    code_point = (code_point << 6) | (byte & 0x3fu);
  }
  return {code_point, lead.length, Utf8State::kValid};
}

void append_utf8(std::string& out, char32_t code_point) {
  const auto tail = [&](int shift) {
    out += static_cast<char>(0x80u | ((code_point >> shift) & 0x3fu));
  };
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    out += static_cast<char>(0xc0u | (code_point >> 6));
    tail(0);
  } else if (code_point < 0x10000) {
    out += static_cast<char>(0xe0u | (code_point >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xf0u | (code_point >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

bool is_utf8(std::string_view bytes) { return valid_prefix(bytes) == bytes.size(); }

std::string to_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const size_t valid = valid_prefix(bytes);
    out += bytes.substr(0, valid);
    bytes.remove_prefix(valid);
    if (bytes.empty()) break;
    append_utf8(out, kReplacement);
    bytes.remove_prefix(decode_utf8(bytes).length);
  }
  return out;
}

size_t unfinished_suffix(std::string_view bytes) {
  const size_t longest = std::min<size_t>(3, bytes.size());
  for (size_t length = 1; length <= longest; ++length) {
    const std::string_view suffix = bytes.substr(bytes.size() - length);
    if (decode_utf8(suffix).state == Utf8State::kUnfinished) return length;
  }
  return 0;
}

}  // namespace spb::text
