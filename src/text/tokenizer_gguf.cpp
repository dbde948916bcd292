#include "text/tokenizer_gguf.h"

#include <utility>

#include "core/error.h"
#include "text/byte_alphabet.h"

namespace spb::text {
namespace {

constexpr std::string_view kSource = "tokenizer metadata";

// Values of tokenizer.ggml.token_type.
constexpr int64_t kOrdinary = 1;
constexpr int64_t kUnknown = 2;
constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;
constexpr int64_t kUnused = 5;
constexpr int64_t kByte = 6;

// Bits of tokenizer.spb.added_flags.
constexpr int64_t kLstrip = 1;
constexpr int64_t kRstrip = 2;
constexpr int64_t kSingleWord = 4;
constexpr int64_t kNormalized = 8;
constexpr int64_t kOrdinaryToo = 16;
constexpr int64_t kAllFlags = kLstrip | kRstrip | kSingleWord | kNormalized | kOrdinaryToo;

using Flags = std::unordered_map<int64_t, int64_t>;

int64_t flags_of(const AddedTokenRule& rule, const TokenizerParts& parts) {
  const std::string& content = rule.token.content;
  // Where this matters: the token of a byte, and pieces that are taken as tokens unmerged.
  const bool ordinary_too = (content.size() == 1 || parts.settings.ignore_merges) &&
                            parts.texts.find(content) == rule.token.id;
  return (rule.lstrip ? kLstrip : 0) | (rule.rstrip ? kRstrip : 0) |
         (rule.single_word ? kSingleWord : 0) | (rule.normalized ? kNormalized : 0) |
         (ordinary_too ? kOrdinaryToo : 0);
}

Flags read_flags(const io::GgufMetadata& metadata) {
  Flags flags;
  const auto* pairs = metadata.get_integers("tokenizer.spb.added_flags");
  if (pairs == nullptr) return flags;
  check_data(pairs->size() % 2 == 0, "{}: tokenizer.spb.added_flags: expected pairs, got {} values",
             kSource, pairs->size());
  for (size_t i = 0; i < pairs->size(); i += 2) {
    const int64_t value = (*pairs)[i + 1];
    check_data((value & ~kAllFlags) == 0, "{}: tokenizer.spb.added_flags: expected 0 to {}, got {}",
               kSource, kAllFlags, value);
    flags[(*pairs)[i]] = value;
  }
  return flags;
}

void add_rule(TokenizerBuilder& builder, const std::string& content, size_t id, bool special,
              const Flags& flags) {
  AddedTokenRule rule;
  rule.token = {content, 0, special};
  if (const auto found = flags.find(static_cast<int64_t>(id)); found != flags.end()) {
    rule.lstrip = (found->second & kLstrip) != 0;
    rule.rstrip = (found->second & kRstrip) != 0;
    rule.single_word = (found->second & kSingleWord) != 0;
    rule.normalized = (found->second & kNormalized) != 0;
  }
  builder.add_added_token(std::move(rule), static_cast<int64_t>(id));
}

void read_tokens(const io::GgufMetadata& metadata, TokenizerBuilder& builder) {
  const auto* tokens = metadata.get_strings("tokenizer.ggml.tokens");
  check_data(tokens != nullptr, "{}: tokenizer.ggml.tokens: expected an array, got none", kSource);
  const auto* types = metadata.get_integers("tokenizer.ggml.token_type");
  check_data(types == nullptr || types->size() == tokens->size(),
             "{}: tokenizer.ggml.token_type: expected {} values, got {}", kSource, tokens->size(),
             types == nullptr ? 0 : types->size());
  const auto type_of = [&](size_t id) { return types == nullptr ? kOrdinary : (*types)[id]; };
  const Flags flags = read_flags(metadata);
  for (size_t id = 0; id < tokens->size(); ++id) {
    const int64_t type = type_of(id);
    check_data(type >= kOrdinary && type <= kByte,
               "{}: tokenizer.ggml.token_type: token {}: expected {} to {}, got {}", kSource, id,
               kOrdinary, kByte, type);
    if (type == kUnknown || type == kControl || type == kUserDefined) {
      add_rule(builder, (*tokens)[id], id, type != kUserDefined, flags);
    }
  }
  for (size_t id = 0; id < tokens->size(); ++id) {
    const auto wide_id = static_cast<int64_t>(id);
    const auto flag = flags.find(wide_id);
    const bool ordinary_too = flag != flags.end() && (flag->second & kOrdinaryToo) != 0;
    if (type_of(id) == kOrdinary || ordinary_too) builder.add_token((*tokens)[id], wide_id);
  }
  builder.reserve_ids(static_cast<int64_t>(tokens->size()));
}

std::optional<int32_t> read_id(const io::GgufMetadata& metadata, const TokenizerBuilder& builder,
                               const std::string& key) {
  const std::optional<int64_t> id = metadata.get_integer(key);
  if (!id) return std::nullopt;
  return builder.checked_reference(key, *id);
}

void read_settings(const io::GgufMetadata& metadata, TokenizerBuilder& builder) {
  TokenizerSettings& settings = builder.settings();
  settings.nfc = metadata.get_bool("tokenizer.spb.nfc").value_or(settings.nfc);
  settings.ignore_merges =
      metadata.get_bool("tokenizer.spb.ignore_merges").value_or(settings.ignore_merges);
  settings.wants_bos =
      metadata.get_bool("tokenizer.ggml.add_bos_token").value_or(settings.wants_bos);
  settings.bos = read_id(metadata, builder, "tokenizer.ggml.bos_token_id");
  settings.unknown = read_id(metadata, builder, "tokenizer.spb.unknown_token_id");
  settings.eos = read_id(metadata, builder, "tokenizer.ggml.eos_token_id");
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    if (const auto id = read_id(metadata, builder, key)) settings.end_tokens.push_back(*id);
  }
}

void set_id(io::GgufMetadata& metadata, const char* key, std::optional<int32_t> id) {
  if (id) metadata.set(key, static_cast<uint64_t>(*id));
}

void write_tokens(const TokenizerParts& parts, io::GgufMetadata& metadata) {
  std::vector<std::string> tokens;
  std::vector<int64_t> types;
  tokens.reserve(static_cast<size_t>(parts.texts.size()));
  for (const std::string& bytes : parts.texts) {
    const bool unused = bytes.empty();
    tokens.push_back(unused ? fmt::format("[PAD{}]", tokens.size()) : spell_bytes(bytes));
    types.push_back(unused ? kUnused : kOrdinary);
  }
  std::vector<int64_t> flags;
  for (const AddedTokenRule& rule : parts.added) {
    const auto id = static_cast<size_t>(rule.token.id);
    tokens[id] = rule.token.content;
    types[id] = rule.token.special ? kControl : kUserDefined;
    const int64_t value = flags_of(rule, parts);
    if (value == 0) continue;
    flags.push_back(rule.token.id);
    flags.push_back(value);
  }
  metadata.set("tokenizer.ggml.tokens", io::GgufArray(std::move(tokens)));
  metadata.set("tokenizer.ggml.token_type", io::GgufArray(std::move(types)));
  if (!flags.empty()) metadata.set("tokenizer.spb.added_flags", io::GgufArray(std::move(flags)));
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_gguf(const io::GgufMetadata& metadata) {
  const std::string model = metadata.get_string("tokenizer.ggml.model").value_or("");
  check_data(model == "gpt2",
             "{}: tokenizer.ggml.model: expected gpt2 (byte-level byte pairs), got '{}'", kSource,
             printable(model));
  const std::string pre = metadata.get_string("tokenizer.ggml.pre").value_or("");
  const std::optional<PreTokenizerKind> kind = parse_ggml_name(pre);
  check_data(kind.has_value(),
             "{}: tokenizer.ggml.pre: expected gpt-2, qwen2, llama-bpe or smollm, got '{}'",
             kSource, printable(pre));
  TokenizerBuilder builder{std::string(kSource)};
  builder.settings() = default_settings(*kind);
  read_tokens(metadata, builder);
  const auto* merges = metadata.get_strings("tokenizer.ggml.merges");
  check_data(merges != nullptr, "{}: tokenizer.ggml.merges: expected an array, got none", kSource);
  for (const std::string& merge : *merges) builder.add_merge(merge);
  read_settings(metadata, builder);
  return builder.build();
}

void write_tokenizer_metadata(const TokenizerParts& parts, const std::vector<Merge>& merges,
                              io::GgufMetadata& metadata) {
  const TokenizerSettings& settings = parts.settings;
  metadata.set("tokenizer.ggml.model", std::string("gpt2"));
  metadata.set("tokenizer.ggml.pre", std::string(ggml_name(settings.pretokenizer)));
  write_tokens(parts, metadata);
  std::vector<std::string> lines;
  lines.reserve(merges.size());
  for (const Merge& merge : merges) {
    lines.push_back(spell_bytes(parts.texts[merge.left]) + ' ' +
                    spell_bytes(parts.texts[merge.right]));
  }
  metadata.set("tokenizer.ggml.merges", io::GgufArray(std::move(lines)));
  set_id(metadata, "tokenizer.ggml.bos_token_id", settings.bos);
  set_id(metadata, "tokenizer.ggml.eos_token_id", settings.eos);
  set_id(metadata, "tokenizer.spb.unknown_token_id", settings.unknown);
  metadata.set("tokenizer.ggml.add_bos_token", settings.wants_bos);
  const TokenizerSettings implied = default_settings(settings.pretokenizer);
  if (settings.nfc != implied.nfc) metadata.set("tokenizer.spb.nfc", settings.nfc);
  if (settings.ignore_merges != implied.ignore_merges) {
    metadata.set("tokenizer.spb.ignore_merges", settings.ignore_merges);
  }
}

}  // namespace spb::text
