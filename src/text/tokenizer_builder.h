// TokenizerBuilder: what every source of a tokenizer (tokenizer.json, vocab.json, GGUF) fills in.
//
// The parts come from files of strangers, so each is checked when it is added: ids in range and
// given once, spellings inside the byte alphabet, merges between known tokens. Errors are data
// errors that name the source. Order: added tokens, then tokens, then merges, then build().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/added_tokens.h"
#include "text/byte_pairs.h"
#include "text/pretokenizer.h"
#include "text/token_texts.h"
#include "text/tokenizer.h"

namespace spb::text {

struct TokenizerSettings {
  PreTokenizerKind pretokenizer = PreTokenizerKind::kGpt2;
  bool nfc = false;            // normalise text before it is cut
  bool ignore_merges = false;  // a piece that is a token is that token, whatever the merges say
  bool wants_bos = false;
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
  std::optional<int32_t> unknown;   // for bytes that have no token; none: they are left out
  std::vector<int32_t> end_tokens;  // beside eos and those known by name
};

// What the name of a pre-tokenizer implies where a file says nothing else (GGUF).
TokenizerSettings default_settings(PreTokenizerKind kind);

// Everything about a tokenizer but its merges, checked.
struct TokenizerParts {
  TokenizerSettings settings;
  TokenTexts texts;                   // ordinary tokens are indexed
  std::vector<AddedTokenRule> added;  // contents differ, ids are in range
};

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerParts parts, BytePairs byte_pairs);

class TokenizerBuilder {
 public:
  // Far above any vocabulary in use; keeps a small hostile file from asking for much memory.
  static constexpr int64_t kMaxTokens = int64_t{1} << 20;

  // `source` is the file named in messages.
  explicit TokenizerBuilder(std::string source) : source_(std::move(source)) {}

  TokenizerSettings& settings() { return parts_.settings; }
  const std::string& source() const { return source_; }

  // `rule.token.id` is replaced by `id`, which has been checked.
  void add_added_token(AddedTokenRule rule, int64_t id);
  // `spelling` is in the byte alphabet. An id that is an added token's must have the same text.
  void add_token(std::string_view spelling, int64_t id);
  // The next lower rank.
  void add_merge(std::string_view left, std::string_view right);
  // "left right", as merges.txt and older files have it.
  void add_merge(std::string_view line);

  // Makes the vocabulary at least `count` long; ids without a token stay holes.
  void reserve_ids(int64_t count);

  bool has_added_token(std::string_view content) const { return added_ids_.contains(content); }
  // An id by content, of added tokens first; nothing when there is none.
  std::optional<int32_t> find(std::string_view content) const;
  // The id of a token that a file refers to by number: data error unless it is in the vocabulary.
  int32_t checked_reference(std::string_view what, int64_t id) const;

  std::unique_ptr<Tokenizer> build();

 private:
  struct TextHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  int32_t checked_id(std::string_view token, int64_t id) const;
  void store(int32_t id, std::string text);
  void add_alias_of_added(const AddedTokenRule& added, std::string_view spelling);
  int32_t merge_part(std::string_view spelling, std::string& bytes) const;
  void check_token(bool condition, std::string_view token, const char* expected) const;
  void check_merge(bool condition, std::string_view token) const;
  void collect_end_tokens();

  std::string source_;
  TokenizerParts parts_;
  std::vector<Merge> merges_;
  std::vector<bool> taken_;
  std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>> added_ids_;
  std::unordered_map<int32_t, size_t> added_by_id_;  // index in parts_.added
};

}  // namespace spb::text
