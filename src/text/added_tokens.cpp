#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

bool begins_with_word(std::string_view text) {
  return !text.empty() && is_word_character(decode_utf8(text).code_point);
}

std::string_view last_character(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0u) == 0x80u) --begin;
  return text.substr(begin);
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && begins_with_word(last_character(text));
}

size_t leading_white_space(std::string_view text) {
  size_t length = 0;
  while (length < text.size()) {
    const Utf8Character character = decode_utf8(text.substr(length));
    if (!is_white_space(character.code_point)) break;
    length += character.length;
  }
  return length;
}

size_t trailing_white_space(std::string_view text) {
  const size_t whole = text.size();
  while (!text.empty()) {
    const std::string_view last = last_character(text);
    if (!is_white_space(decode_utf8(last).code_point)) break;
    text.remove_suffix(last.size());
  }
  return whole - text.size();
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedTokenRule> rules) : rules_(std::move(rules)) {
  std::stable_sort(rules_.begin(), rules_.end(),
                   [](const auto& a, const auto& b) { return a.token.content < b.token.content; });
  const auto same = [](const AddedTokenRule& a, const AddedTokenRule& b) {
    return a.token.content == b.token.content;
  };
  rules_.erase(std::unique(rules_.begin(), rules_.end(), same), rules_.end());
  for (const AddedTokenRule& rule : rules_) {
    begins_[static_cast<unsigned char>(rule.token.content[0])] = true;
  }
}

const AddedTokenRule* AddedTokenMatcher::find(std::string_view content) const {
  const auto found = std::lower_bound(
      rules_.begin(), rules_.end(), content,
      [](const AddedTokenRule& rule, std::string_view text) { return rule.token.content < text; });
  return found != rules_.end() && found->token.content == content ? &*found : nullptr;
}

// Narrows the range of rules that share a prefix with the text, byte by byte. In a sorted range
// with a common prefix, a rule that is that prefix and nothing more comes first.
const AddedTokenRule* AddedTokenMatcher::longest_at(std::string_view text) const {
  const AddedTokenRule* longest = nullptr;
  auto first = rules_.begin();
  auto last = rules_.end();
  for (size_t depth = 0; depth < text.size(); ++depth) {
    const auto byte_at = [depth](const AddedTokenRule& rule) {
      return rule.token.content.size() <= depth
                 ? -1
                 : static_cast<int>(static_cast<unsigned char>(rule.token.content[depth]));
    };
    const int byte = static_cast<unsigned char>(text[depth]);
    first =
        std::partition_point(first, last, [&](const auto& rule) { return byte_at(rule) < byte; });
    last =
        std::partition_point(first, last, [&](const auto& rule) { return byte_at(rule) == byte; });
    if (first == last) break;
    if (first->token.content.size() == depth + 1) longest = &*first;
  }
  return longest;
}

void AddedTokenMatcher::split(std::string_view text, std::vector<Part>& parts) const {
  size_t done = 0;  // everything before is in a part
  size_t at = 0;
  while (!rules_.empty() && at < text.size()) {
    const AddedTokenRule* rule = nullptr;
    if (begins_[static_cast<unsigned char>(text[at])]) rule = longest_at(text.substr(at));
    if (rule == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + rule->token.content.size();
    at = end;
    if (rule->single_word &&
        (ends_with_word(text.substr(0, begin)) || begins_with_word(text.substr(end)))) {
      continue;
    }
    if (begin < done) continue;  // its white space belongs to the token before
    if (rule->lstrip) begin -= trailing_white_space(text.substr(done, begin - done));
    if (rule->rstrip) end += leading_white_space(text.substr(end));
    if (done < begin) parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({text.substr(begin, end - begin), rule->token.id});
    done = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
}

}  // namespace spb::text
