#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "core/error.h"
#include "text/piece_cache.h"
#include "text/tokenizer_builder.h"
#include "text/tokenizer_gguf.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

// The added tokens that are looked for before normalisation, or after it.
std::vector<AddedTokenRule> rules_of(const TokenizerParts& parts, bool normalized) {
  std::vector<AddedTokenRule> rules;
  for (AddedTokenRule rule : parts.added) {
    if (rule.normalized != normalized) continue;
    if (normalized && parts.settings.nfc) rule.token.content = normalize_nfc(rule.token.content);
    rules.push_back(std::move(rule));
  }
  return rules;
}

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(TokenizerParts parts, BytePairs byte_pairs)
      : parts_(std::move(parts)),
        byte_pairs_(std::move(byte_pairs)),
        pretokenizer_(parts_.settings.pretokenizer),
        added_(rules_of(parts_, false)),
        added_normalized_(rules_of(parts_, true)),
        special_(static_cast<size_t>(parts_.texts.size())) {
    for (const AddedTokenRule& rule : parts_.added) {
      special_[static_cast<size_t>(rule.token.id)] = rule.token.special;
    }
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override;
  std::string decode(std::span<const int32_t> ids, bool keep_special) const override;
  int64_t vocab_size() const override { return parts_.texts.size(); }
  bool is_special(int32_t id) const override { return special_[index_of(id)]; }
  std::optional<int32_t> find(std::string_view token) const override;
  std::optional<int32_t> bos() const override { return parts_.settings.bos; }
  std::optional<int32_t> eos() const override { return parts_.settings.eos; }
  const std::vector<int32_t>& end_tokens() const override { return parts_.settings.end_tokens; }
  bool wants_bos() const override { return parts_.settings.wants_bos; }
  void write_metadata(io::GgufMetadata& metadata) const override {
    write_tokenizer_metadata(parts_, byte_pairs_.merges(), metadata);
  }

 private:
  // What encoding one text needs; a local of encode(), so that threads share nothing.
  struct Encoding {
    Encoding(const PreTokenizer& pretokenizer, size_t bytes) : cursor(pretokenizer) {
      constexpr size_t kWorthACache = 4096;
      if (bytes >= kWorthACache) cache.emplace();
      ids.reserve(bytes / 3 + 1);
    }
    PreTokenizer::Cursor cursor;
    std::optional<PieceCache> cache;
    BytePairs::Workspace workspace;
    std::vector<int32_t> ids;
  };

  size_t index_of(int32_t id) const {
    check(id >= 0 && id < vocab_size(), "tokenizer: id: expected 0 to {}, got {}", vocab_size() - 1,
          id);
    return static_cast<size_t>(id);
  }
  void encode_part(std::string_view text, bool parse_special, Encoding& encoding) const;
  void encode_plain(std::string_view text, Encoding& encoding) const;
  void encode_piece(std::string_view piece, Encoding& encoding) const;

  TokenizerParts parts_;
  BytePairs byte_pairs_;
  PreTokenizer pretokenizer_;
  AddedTokenMatcher added_;
  AddedTokenMatcher added_normalized_;
  std::vector<bool> special_;
};

std::vector<int32_t> BpeTokenizer::encode(std::string_view text,
                                          const EncodeOptions& options) const {
  check(text.size() < std::numeric_limits<uint32_t>::max() / 4,
        "tokenizer: text: expected less than 1 GiB, got {} bytes", text.size());
  std::string repaired;
  if (!is_utf8(text)) {
    repaired = to_utf8(text);
    text = repaired;
  }
  Encoding encoding(pretokenizer_, text.size());
  if (options.add_bos && parts_.settings.bos) encoding.ids.push_back(*parts_.settings.bos);
  if (!options.parse_special || added_.empty()) {
    encode_part(text, options.parse_special, encoding);
    return std::move(encoding.ids);
  }
  std::vector<AddedTokenMatcher::Part> parts;
  added_.split(text, parts);
  for (const auto& part : parts) {
    if (part.id >= 0) {
      encoding.ids.push_back(part.id);
    } else {
      encode_part(part.text, true, encoding);
    }
  }
  return std::move(encoding.ids);
}

// A text between two added tokens: normalisation, and the tokens looked for after it.
void BpeTokenizer::encode_part(std::string_view text, bool parse_special,
                               Encoding& encoding) const {
  std::string normal;
  if (parts_.settings.nfc && may_change_in_nfc(text)) {
    normal = normalize_nfc(text);
    text = normal;
  }
  if (!parse_special || added_normalized_.empty()) return encode_plain(text, encoding);
  std::vector<AddedTokenMatcher::Part> parts;
  added_normalized_.split(text, parts);
  for (const auto& part : parts) {
    if (part.id >= 0) {
      encoding.ids.push_back(part.id);
    } else {
      encode_plain(part.text, encoding);
    }
  }
}

void BpeTokenizer::encode_plain(std::string_view text, Encoding& encoding) const {
  encoding.cursor.start(text);
  for (auto piece = encoding.cursor.next(); !piece.empty(); piece = encoding.cursor.next()) {
    if (!encoding.cache || piece.size() > PieceCache::kLongestPiece) {
      encode_piece(piece, encoding);
      continue;
    }
    auto& ids = encoding.ids;
    PieceCache::Entry& known = encoding.cache->find(piece);
    if (known.count > 0) {
      ids.insert(ids.end(), known.tokens().begin(), known.tokens().end());
      continue;
    }
    const size_t before = ids.size();
    encode_piece(piece, encoding);
    PieceCache::store(known, std::span(ids).subspan(before));
  }
}

void BpeTokenizer::encode_piece(std::string_view piece, Encoding& encoding) const {
  if (parts_.settings.ignore_merges) {
    if (const auto known = parts_.texts.find(piece)) {
      encoding.ids.push_back(*known);
      return;
    }
  }
  byte_pairs_.encode(piece, encoding.workspace, encoding.ids);
}

std::string BpeTokenizer::decode(std::span<const int32_t> ids, bool keep_special) const {
  std::string out;
  for (const int32_t id : ids) {
    const size_t index = index_of(id);
    if (keep_special || !special_[index]) out += parts_.texts[id];
  }
  return out;
}

std::optional<int32_t> BpeTokenizer::find(std::string_view token) const {
  if (const auto* rule = added_.find(token)) return rule->token.id;
  if (!added_normalized_.empty() && is_utf8(token)) {
    const std::string normal = parts_.settings.nfc ? normalize_nfc(token) : std::string(token);
    if (const auto* rule = added_normalized_.find(normal)) return rule->token.id;
  }
  return parts_.texts.find(token);
}

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerParts parts, BytePairs byte_pairs) {
  return std::make_unique<BpeTokenizer>(std::move(parts), std::move(byte_pairs));
}

}  // namespace spb::text
