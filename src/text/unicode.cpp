#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "text/utf8.h"

namespace spb::text {
namespace {

using CodePoints = std::vector<utf8proc_int32_t>;

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

CodePoints decompose(std::string_view text) {
  constexpr utf8proc_ssize_t kLongest = 32;  // a canonical decomposition has at most 4 characters
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  CodePoints out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Character character = decode_utf8(text);
    text.remove_prefix(character.length);
    const auto code_point = static_cast<utf8proc_int32_t>(character.code_point);
    if (code_point < 0x80) {
      out.push_back(code_point);
      continue;
    }
    utf8proc_int32_t parts[kLongest];
    const auto count = utf8proc_decompose_char(code_point, parts, kLongest, options, nullptr);
    if (count < 1 || count > kLongest) {
      out.push_back(code_point);
    } else {
      out.insert(out.end(), parts, parts + count);
    }
  }
  return out;
}

// Sorts every run of combining marks by class. The library's own ordering swaps neighbours, which
// takes quadratic time on a long run.
void order_marks(CodePoints& points) {
  const auto before = [](utf8proc_int32_t a, utf8proc_int32_t b) {
    return combining_class(a) < combining_class(b);
  };
  for (auto begin = points.begin(); begin != points.end();) {
    if (*begin < 0x300 || combining_class(*begin) == 0) {
      ++begin;
      continue;
    }
    auto end = begin + 1;
    while (end != points.end() && combining_class(*end) != 0) ++end;
    if (!std::is_sorted(begin, end, before)) std::stable_sort(begin, end, before);
    begin = end;
  }
}

}  // namespace

bool may_change_in_nfc(std::string_view text) {
  // U+0300 is the first character that is not always its own normal form; it begins with 0xcc.
  return std::any_of(text.begin(), text.end(),
                     [](char byte) { return static_cast<unsigned char>(byte) >= 0xcc; });
}

std::string normalize_nfc(std::string_view text) {
  if (!may_change_in_nfc(text)) return std::string(text);
  CodePoints points = decompose(text);
  order_marks(points);
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const auto length = utf8proc_normalize_utf32(
      points.data(), static_cast<utf8proc_ssize_t>(points.size()), options);
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) {
    append_utf8(out, static_cast<char32_t>(points[static_cast<size_t>(i)]));
  }
  return out;
}

bool is_white_space(char32_t code_point) {
  if (code_point < 0x80) return code_point == ' ' || (code_point >= '\t' && code_point <= '\r');
  return code_point == 0x85 || code_point == 0xa0 || code_point == 0x1680 ||
         (code_point >= 0x2000 && code_point <= 0x200a) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202f || code_point == 0x205f ||
         code_point == 0x3000;
}

bool is_word_character(char32_t code_point) {
  const bool joiner = code_point == 0x200c || code_point == 0x200d;
  const bool circled_letter = (code_point >= 0x24b6 && code_point <= 0x24e9) ||
                              (code_point >= 0x1f130 && code_point <= 0x1f149) ||
                              (code_point >= 0x1f150 && code_point <= 0x1f169) ||
                              (code_point >= 0x1f170 && code_point <= 0x1f189);
  if (joiner || circled_letter) return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
  }
}

}  // namespace spb::text
