#include "text/tokenizer_builder.h"

#include <array>
#include <unordered_set>
#include <utility>

#include "core/error.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

std::array<int32_t, 256> byte_tokens(const TokenTexts& texts) {
  std::array<int32_t, 256> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    const char character = static_cast<char>(byte);
    tokens[static_cast<size_t>(byte)] = texts.find({&character, 1}).value_or(BytePairs::kNoToken);
  }
  return tokens;
}

}  // namespace

TokenizerSettings default_settings(PreTokenizerKind kind) {
  TokenizerSettings settings;
  settings.pretokenizer = kind;
  settings.nfc = kind == PreTokenizerKind::kQwen2;
  settings.ignore_merges = kind == PreTokenizerKind::kLlama3;
  settings.wants_bos = kind == PreTokenizerKind::kLlama3;
  return settings;
}

int32_t TokenizerBuilder::checked_id(std::string_view token, int64_t id) const {
  if (id < 0 || id >= kMaxTokens) [[unlikely]] {
    fail(ErrorKind::kData, "{}: token '{}': id: expected 0 to {}, got {}", source_,
         printable(token), kMaxTokens - 1, id);
  }
  return static_cast<int32_t>(id);
}

void TokenizerBuilder::reserve_ids(int64_t count) {
  check_data(count <= kMaxTokens, "{}: vocabulary: expected at most {} tokens, got {}", source_,
             kMaxTokens, count);
  if (count <= parts_.texts.size()) return;
  parts_.texts.resize(count);
  taken_.resize(static_cast<size_t>(count));
}

void TokenizerBuilder::store(int32_t id, std::string text) {
  reserve_ids(id + int64_t{1});
  const auto index = static_cast<size_t>(id);
  if (taken_[index]) [[unlikely]] {
    fail(ErrorKind::kData, "{}: id {}: expected one token, got '{}' and '{}'", source_, id,
         printable(parts_.texts[id]), printable(text));
  }
  taken_[index] = true;
  parts_.texts.set(id, std::move(text));
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

// The vocabulary may list an added token, too: then merges may lead to it.
void TokenizerBuilder::add_alias_of_added(const AddedTokenRule& added, std::string_view spelling) {
  const std::string& content = added.token.content;
  check_data(spelling == content || unspell_bytes(spelling) == content,
             "{}: id {}: expected the added token '{}', got '{}'", source_, added.token.id,
             printable(content), printable(spelling));
  parts_.texts.index(added.token.id);
}

void TokenizerBuilder::add_token(std::string_view spelling, int64_t wide_id) {
  const int32_t id = checked_id(spelling, wide_id);
  if (const auto added = added_by_id_.find(id); added != added_by_id_.end()) {
    return add_alias_of_added(parts_.added[added->second], spelling);
  }
  std::optional<std::string> bytes = unspell_bytes(spelling);
  check_token(bytes && !bytes->empty(), spelling, "expected characters of the byte alphabet");
  store(id, std::move(*bytes));
  const std::optional<int32_t> known = parts_.texts.index(id);
  check_token(!known, spelling, "expected one id, got two");
}

int32_t TokenizerBuilder::merge_part(std::string_view spelling, std::string& bytes) const {
  std::optional<std::string> known = unspell_bytes(spelling);
  bytes = known ? std::move(*known) : std::string(spelling);
  const std::optional<int32_t> id = find(bytes);
  check_merge(id.has_value(), spelling);
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
  check_merge(result.has_value(), bytes);
  merge.result = *result;
  merges_.push_back(merge);
}

void TokenizerBuilder::add_merge(std::string_view line) {
  const size_t space = line.find(' ');
  const bool two_parts = space != std::string_view::npos && space > 0 && space + 1 < line.size() &&
                         line.find(' ', space + 1) == std::string_view::npos;
  if (!two_parts) [[unlikely]] {
    fail(ErrorKind::kData, "{}: merge {}: expected two tokens and a space between, got '{}'",
         source_, merges_.size(), printable(line));
  }
  add_merge(line.substr(0, space), line.substr(space + 1));
}

// The two checks below make texts printable only on failure: they are asked for every token.
void TokenizerBuilder::check_token(bool condition, std::string_view token,
                                   const char* expected) const {
  if (condition) [[likely]]
    return;
  fail(ErrorKind::kData, "{}: token '{}': {}", source_, printable(token), expected);
}

void TokenizerBuilder::check_merge(bool condition, std::string_view token) const {
  if (condition) [[likely]]
    return;
  fail(ErrorKind::kData, "{}: merge {}: expected a token of the vocabulary, got '{}'", source_,
       merges_.size(), printable(token));
}

std::optional<int32_t> TokenizerBuilder::find(std::string_view content) const {
  if (const auto id = parts_.texts.find(content)) return id;
  if (const auto found = added_ids_.find(content); found != added_ids_.end()) return found->second;
  return std::nullopt;
}

int32_t TokenizerBuilder::checked_reference(std::string_view what, int64_t id) const {
  check_data(id >= 0 && id < parts_.texts.size(),
             "{}: {}: expected an id of the vocabulary of {}, got {}", source_, what,
             parts_.texts.size(), id);
  return static_cast<int32_t>(id);
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
  check_data(parts_.texts.has_indexed(), "{}: vocabulary: expected tokens, got none", source_);
  collect_end_tokens();
  BytePairs byte_pairs(std::move(merges_), byte_tokens(parts_.texts),
                       parts_.settings.unknown.value_or(BytePairs::kNoToken));
  check_data(!byte_pairs.repeated(), "{}: merge {}: expected a new pair, got one seen before",
             source_, byte_pairs.repeated().value_or(0));
  return make_tokenizer(std::move(parts_), std::move(byte_pairs));
}

}  // namespace spb::text
