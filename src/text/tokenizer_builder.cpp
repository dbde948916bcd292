#include "text/tokenizer_builder.h"

#include <algorithm>
#include <array>
#include <unordered_set>

#include "core/error.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace spb::text {

TokenizerSettings default_settings(PreTokenizerKind kind) {
  TokenizerSettings settings;
  settings.pretokenizer = kind;
  settings.nfc = kind == PreTokenizerKind::kQwen2;
  settings.ignore_merges = kind == PreTokenizerKind::kLlama3;
  settings.wants_bos = kind == PreTokenizerKind::kLlama3;
  return settings;
}

int32_t TokenizerBuilder::checked_id(std::string_view token, int64_t id) const {
  check_data(id >= 0 && id < kMaxTokens, "{}: token '{}': id: expected 0 to {}, got {}", source_,
             printable(token), kMaxTokens - 1, id);
  return static_cast<int32_t>(id);
}

void TokenizerBuilder::store(int32_t id, std::string bytes) {
  const auto index = static_cast<size_t>(id);
  reserve_ids(id + int64_t{1});
  check_data(!taken_[index], "{}: id {}: expected one token, got '{}' and '{}'", source_, id,
             printable(parts_.bytes[index]), printable(bytes));
  taken_[index] = true;
  parts_.bytes[index] = std::move(bytes);
}

void TokenizerBuilder::add_added_token(AddedTokenRule rule, int64_t id) {
  const std::string& content = rule.token.content;
  rule.token.id = checked_id(content, id);
  check_data(!content.empty() && content.size() <= AddedTokenMatcher::kLongestContent,
             "{}: added token {}: expected 1 to {} bytes, got {}", source_, id,
             AddedTokenMatcher::kLongestContent, content.size());
  check_data(is_utf8(content), "{}: added token {}: expected UTF-8, got '{}'", source_, id,
             printable(content));
  const bool is_new = added_ids_.emplace(content, rule.token.id).second;
  check_data(is_new, "{}: added token '{}': expected one id, got {} and {}", source_,
             printable(content), added_ids_.find(content)->second, id);
  store(rule.token.id, content);
  added_by_id_.emplace(rule.token.id, parts_.added.size());
  parts_.added.push_back(std::move(rule));
}

void TokenizerBuilder::add_token(std::string_view spelling, int64_t wide_id) {
  const int32_t id = checked_id(spelling, wide_id);
  std::optional<std::string> bytes = unspell_bytes(spelling);
  if (const auto added = added_by_id_.find(id); added != added_by_id_.end()) {
    const std::string& content = parts_.added[added->second].token.content;
    check_data(spelling == content || bytes == content,
               "{}: id {}: expected the added token '{}', got '{}'", source_, id,
               printable(content), printable(spelling));
    parts_.ids.try_emplace(content, id);
    return;
  }
  check_data(bytes.has_value() && !bytes->empty(),
             "{}: token {}: expected characters of the byte alphabet, got '{}'", source_, id,
             printable(spelling));
  const auto [known, is_new] = parts_.ids.try_emplace(*bytes, id);
  check_data(is_new, "{}: token '{}': expected one id, got {} and {}", source_, printable(spelling),
             known->second, id);
  store(id, std::move(*bytes));
}

void TokenizerBuilder::reserve_ids(int64_t count) {
  check_data(count <= kMaxTokens, "{}: vocabulary: expected at most {} tokens, got {}", source_,
             kMaxTokens, count);
  if (count <= static_cast<int64_t>(parts_.bytes.size())) return;
  parts_.bytes.resize(static_cast<size_t>(count));
  taken_.resize(static_cast<size_t>(count));
}

int32_t TokenizerBuilder::merge_part(std::string_view spelling, std::string& bytes) const {
  std::optional<std::string> known = unspell_bytes(spelling);
  bytes = known ? std::move(*known) : std::string(spelling);
  const std::optional<int32_t> id = find(bytes);
  check_data(id.has_value(), "{}: merge {}: expected a token of the vocabulary, got '{}'", source_,
             parts_.merges.size(), printable(spelling));
  return *id;
}

void TokenizerBuilder::add_merge(std::string_view left, std::string_view right) {
  std::string bytes;
  std::string right_bytes;
  Merge merge{};
  merge.left = merge_part(left, bytes);
  merge.right = merge_part(right, right_bytes);
  bytes += right_bytes;
  const std::optional<int32_t> result = find(bytes);
  check_data(result.has_value(), "{}: merge {}: expected a token of the vocabulary, got '{}'",
             source_, parts_.merges.size(), printable(bytes));
  merge.result = *result;
  parts_.merges.push_back(merge);
}

void TokenizerBuilder::add_merge(std::string_view line) {
  const size_t space = line.find(' ');
  const bool two_parts = space != std::string_view::npos && space > 0 && space + 1 < line.size() &&
                         line.find(' ', space + 1) == std::string_view::npos;
  check_data(two_parts, "{}: merge {}: expected two tokens and a space between, got '{}'", source_,
             parts_.merges.size(), printable(line));
  add_merge(line.substr(0, space), line.substr(space + 1));
}

std::optional<int32_t> TokenizerBuilder::find(std::string_view content) const {
  if (const auto found = parts_.ids.find(content); found != parts_.ids.end()) return found->second;
  if (const auto found = added_ids_.find(content); found != added_ids_.end()) return found->second;
  return std::nullopt;
}

int32_t TokenizerBuilder::checked_reference(std::string_view what, int64_t id) const {
  check_data(id >= 0 && id < static_cast<int64_t>(parts_.bytes.size()),
             "{}: {}: expected an id of the vocabulary of {}, got {}", source_, what,
             parts_.bytes.size(), id);
  return static_cast<int32_t>(id);
}

void TokenizerBuilder::check_merges() const {
  std::unordered_set<uint64_t> pairs;
  pairs.reserve(parts_.merges.size());
  for (size_t rank = 0; rank < parts_.merges.size(); ++rank) {
    const Merge& merge = parts_.merges[rank];
    const auto pair = static_cast<uint64_t>(merge.left) << 32 | static_cast<uint64_t>(merge.right);
    check_data(pairs.insert(pair).second, "{}: merge {}: expected a new pair, got one seen before",
               source_, rank);
  }
}

// Adds eos and the usual end-of-turn and end-of-text tokens, each once.
void TokenizerBuilder::collect_end_tokens() {
  constexpr std::array<std::string_view, 6> kNames = {"<|im_end|>", "<|endoftext|>",   "<|eot_id|>",
                                                      "<|eom_id|>", "<|end_of_text|>", "</s>"};
  auto& ends = parts_.settings.end_tokens;
  if (parts_.settings.eos) ends.insert(ends.begin(), *parts_.settings.eos);
  for (const std::string_view name : kNames) {
    if (const auto found = added_ids_.find(name); found != added_ids_.end()) {
      ends.push_back(found->second);
    }
  }
  std::unordered_set<int32_t> seen;
  std::erase_if(ends, [&](int32_t id) { return !seen.insert(id).second; });
}

std::unique_ptr<Tokenizer> TokenizerBuilder::build() {
  check_data(!parts_.ids.empty(), "{}: vocabulary: expected tokens, got none", source_);
  check_merges();
  collect_end_tokens();
  return make_tokenizer(std::move(parts_));
}

}  // namespace spb::text
