#include <charconv>
#include <filesystem>
#include <utility>

#include "core/error.h"
#include "io/mapped_file.h"
#include "text/json_fields.h"
#include "text/tokenizer_builder.h"
#include "text/tokenizer_json.h"

namespace spb::text {
namespace {

using io::Json;

// A file of the folder, mapped; absent files are allowed.
class FolderFile {
 public:
  FolderFile(const std::string& folder, const char* name)
      : path_((std::filesystem::path(folder) / name).string()) {
    std::error_code ignored;
    if (!std::filesystem::exists(path_, ignored)) return;
    file_ = io::MappedFile::open(path_);
  }

  bool exists() const { return file_ != nullptr; }
  const std::string& path() const { return path_; }
  std::string_view text() const {
    return {reinterpret_cast<const char*>(file_->bytes().data()), file_->bytes().size()};
  }
  Json parse() const { return exists() ? io::parse_json(text(), path_) : Json::object(); }

 private:
  std::string path_;
  std::unique_ptr<io::MappedFile> file_;
};

// The small files beside the vocabulary.
struct Config {
  explicit Config(const std::string& folder)
      : tokenizer_file(folder, "tokenizer_config.json"),
        special_file(folder, "special_tokens_map.json"),
        generation_file(folder, "generation_config.json"),
        tokenizer_json(tokenizer_file.parse()),
        special_json(special_file.parse()),
        generation_json(generation_file.parse()),
        tokenizer(tokenizer_json, tokenizer_file.path()),
        special(special_json, special_file.path()),
        generation(generation_json, generation_file.path()) {}

  FolderFile tokenizer_file;
  FolderFile special_file;
  FolderFile generation_file;
  Json tokenizer_json;
  Json special_json;
  Json generation_json;
  JsonFields tokenizer;
  JsonFields special;
  JsonFields generation;
};

// "bos_token": a string, or an object with the content.
std::optional<std::string> token_text(const JsonFields& fields, const char* key) {
  const Json* value = fields.find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_object()) return JsonFields(*value, fields.source()).text("content");
  return io::json_string(*value, fields.where(key));
}

// Names in tokenizer_config.json win over special_tokens_map.json, names over numbers in
// generation_config.json.
std::optional<int32_t> named_token(const Config& config, const char* key,
                                   const TokenizerBuilder& builder) {
  for (const JsonFields* fields : {&config.tokenizer, &config.special}) {
    const std::optional<std::string> text = token_text(*fields, key);
    if (!text) continue;
    const std::optional<int32_t> id = builder.find(*text);
    check_data(id.has_value(), "{}: {}: expected a token of the vocabulary, got '{}'",
               fields->source(), key, printable(*text));
    return id;
  }
  return std::nullopt;
}

// "eos_token_id": a number, or several.
std::vector<int32_t> numbered_tokens(const JsonFields& fields, const char* key,
                                     const TokenizerBuilder& builder) {
  const Json* value = fields.find(key);
  if (value == nullptr) return {};
  std::vector<int32_t> ids;
  const auto add = [&](const Json& id) {
    ids.push_back(builder.checked_reference(key, io::json_integer(id, fields.where(key))));
  };
  if (value->is_array()) {
    for (const Json& id : *value) add(id);
  } else {
    add(*value);
  }
  return ids;
}

void read_special_tokens(const Config& config, TokenizerBuilder& builder) {
  TokenizerSettings& settings = builder.settings();
  if (const auto bos = named_token(config, "bos_token", builder)) settings.bos = bos;
  settings.eos = named_token(config, "eos_token", builder);
  const auto bos_ids = numbered_tokens(config.generation, "bos_token_id", builder);
  const auto eos_ids = numbered_tokens(config.generation, "eos_token_id", builder);
  if (!settings.bos && !bos_ids.empty()) settings.bos = bos_ids[0];
  if (!settings.eos && !eos_ids.empty()) settings.eos = eos_ids[0];
  settings.end_tokens.insert(settings.end_tokens.end(), eos_ids.begin(), eos_ids.end());
  settings.wants_bos = config.tokenizer.flag("add_bos_token", settings.wants_bos);
}

int64_t parse_id(std::string_view text, const std::string& source) {
  int64_t id = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), id);
  check_data(result.ec == std::errc() && result.ptr == text.data() + text.size(),
             "{}: added_tokens_decoder: expected an id, got '{}'", source, printable(text));
  return id;
}

// The tokens of tokenizer_config.json, which say how they are matched, then those that only
// added_tokens.json knows.
void read_added_tokens(const Config& config, const std::string& folder, TokenizerBuilder& builder) {
  if (const Json* decoder = config.tokenizer.object("added_tokens_decoder")) {
    for (const auto& [id, entry] : decoder->items()) {
      builder.add_added_token(read_added_token(entry, config.tokenizer.source()),
                              parse_id(id, config.tokenizer.source()));
    }
  }
  const FolderFile file(folder, "added_tokens.json");
  const Json tokens = file.parse();
  for (const auto& [content, id] : io::json_object(tokens, file.path()).items()) {
    if (builder.has_added_token(content)) continue;
    AddedTokenRule rule;
    rule.token.content = content;
    builder.add_added_token(std::move(rule), io::json_integer(id, file.path()));
  }
}

TokenizerSettings settings_of_class(const Config& config) {
  const std::string& source = config.tokenizer.source();
  const std::string name = config.tokenizer.text("tokenizer_class").value_or("");
  check_data(!config.tokenizer.flag("add_prefix_space", false),
             "{}: add_prefix_space: expected false, got true", source);
  if (name == "Qwen2Tokenizer" || name == "Qwen2TokenizerFast") {
    return default_settings(PreTokenizerKind::kQwen2);
  }
  if (name == "GPT2Tokenizer" || name == "GPT2TokenizerFast") {
    return default_settings(PreTokenizerKind::kGpt2);
  }
  fail(ErrorKind::kData,
       "{}: tokenizer_class: expected Qwen2Tokenizer or GPT2Tokenizer beside vocab.json, got '{}'",
       source, printable(name));
}

void read_merges(const FolderFile& file, TokenizerBuilder& builder) {
  std::string_view rest = file.text();
  while (!rest.empty()) {
    const size_t end = rest.find('\n');
    std::string_view line = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (!line.empty() && !line.starts_with("#version")) builder.add_merge(line);
  }
}

std::unique_ptr<Tokenizer> load_vocabulary_and_merges(const std::string& folder,
                                                      const Config& config) {
  const FolderFile vocabulary(folder, "vocab.json");
  const FolderFile merges(folder, "merges.txt");
  check_data(vocabulary.exists() && merges.exists(),
             "{}: expected tokenizer.json, or vocab.json and merges.txt, got neither", folder);
  TokenizerBuilder builder(vocabulary.path());
  builder.settings() = settings_of_class(config);
  read_added_tokens(config, folder, builder);
  read_vocabulary(vocabulary.parse(), builder);
  read_merges(merges, builder);
  read_special_tokens(config, builder);
  return builder.build();
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_folder(const std::string& folder) {
  const Config config(folder);
  const FolderFile whole(folder, "tokenizer.json");
  if (!whole.exists()) return load_vocabulary_and_merges(folder, config);
  TokenizerBuilder builder(whole.path());
  read_tokenizer_json(whole.text(), builder);
  read_special_tokens(config, builder);
  return builder.build();
}

}  // namespace spb::text
