#include "text/tokenizer_json.h"

#include <utility>

#include "core/error.h"
#include "text/json_fields.h"

namespace spb::text {
namespace {

using io::Json;

std::string type_of(const JsonFields& section, const char* name) {
  const std::optional<std::string> type = section.text("type");
  check_data(type.has_value(), "{}: {}: type: expected a string, got none", section.source(), name);
  return *type;
}

// The parts of a "Sequence", or the section itself.
std::vector<const Json*> steps_of(const Json& section, const std::string& source, const char* name,
                                  const char* list) {
  const JsonFields fields(section, source);
  if (type_of(fields, name) != "Sequence") return {&section};
  const Json* parts = fields.array(list);
  check_data(parts != nullptr, "{}: {}: {}: expected an array, got none", source, name, list);
  std::vector<const Json*> steps;
  for (const Json& part : *parts) steps.push_back(&part);
  return steps;
}

void read_normalizer(const Json& section, TokenizerBuilder& builder) {
  for (const Json* step : steps_of(section, builder.source(), "normalizer", "normalizers")) {
    const std::string type = type_of(JsonFields(*step, builder.source()), "normalizer");
    check_data(type == "NFC", "{}: normalizer: expected NFC or none, got '{}'", builder.source(),
               printable(type));
    builder.settings().nfc = true;
  }
}

// What the steps of a pre-tokenizer amount to.
struct Cuts {
  bool digits = false;
  bool gpt2 = false;
  std::optional<PreTokenizerKind> split;
};

void read_byte_level(const JsonFields& step, Cuts& cuts) {
  check_data(!step.flag("add_prefix_space", true),
             "{}: pre_tokenizer: add_prefix_space: expected false, got true", step.source());
  cuts.gpt2 = step.flag("use_regex", true);
}

void read_split(const JsonFields& step, Cuts& cuts) {
  const std::string& source = step.source();
  const Json* pattern = step.object("pattern");
  const std::optional<std::string> regex =
      pattern == nullptr ? std::nullopt : JsonFields(*pattern, source).text("Regex");
  check_data(regex.has_value(), "{}: pre_tokenizer: Split: expected a Regex, got none", source);
  const std::string behavior = step.text("behavior").value_or("");
  const bool inverted = step.flag("invert", false);
  // Where an expression covers every text, removing what lies between its matches changes nothing.
  const bool isolated =
      (behavior == "Isolated" && !inverted) || (behavior == "Removed" && inverted);
  check_data(isolated, "{}: pre_tokenizer: Split: behavior: expected Isolated, got '{}'{}", source,
             printable(behavior), inverted ? " inverted" : "");
  cuts.split = kind_of_split(*regex);
  check_data(cuts.split.has_value(),
             "{}: pre_tokenizer: Split: expected the expression of gpt-2, qwen2 or llama-bpe, got "
             "'{}'",
             source, printable(*regex));
}

void read_pretokenizer_step(const Json& section, const std::string& source, Cuts& cuts) {
  const JsonFields step(section, source);
  const std::string type = type_of(step, "pre_tokenizer");
  const bool first_cut = !cuts.digits && !cuts.gpt2 && !cuts.split;
  if (type == "ByteLevel") return read_byte_level(step, cuts);
  if (type == "Split" && first_cut) return read_split(step, cuts);
  if (type == "Digits" && first_cut) {
    check_data(step.flag("individual_digits", false),
               "{}: pre_tokenizer: Digits: individual_digits: expected true, got false", source);
    cuts.digits = true;
    return;
  }
  fail(ErrorKind::kData,
       "{}: pre_tokenizer: expected Split or Digits, then ByteLevel, got '{}' in this place",
       source, printable(type));
}

void read_pretokenizer(const Json& section, TokenizerBuilder& builder) {
  const std::string& source = builder.source();
  Cuts cuts;
  const auto steps = steps_of(section, source, "pre_tokenizer", "pretokenizers");
  for (const Json* step : steps) read_pretokenizer_step(*step, source, cuts);
  const bool one_expression = cuts.split.has_value() != cuts.gpt2;
  check_data(one_expression && !(cuts.split && cuts.digits),
             "{}: pre_tokenizer: expected one expression, got another combination", source);
  if (cuts.split) {
    builder.settings().pretokenizer = *cuts.split;
  } else {
    builder.settings().pretokenizer =
        cuts.digits ? PreTokenizerKind::kSmolLm : PreTokenizerKind::kGpt2;
  }
}

void read_added_tokens(const Json& list, TokenizerBuilder& builder) {
  for (const Json& entry : list) {
    AddedTokenRule rule = read_added_token(entry, builder.source());
    const std::optional<int64_t> id = JsonFields(entry, builder.source()).integer("id");
    check_data(id.has_value(), "{}: added token '{}': id: expected a number, got none",
               builder.source(), printable(rule.token.content));
    builder.add_added_token(std::move(rule), *id);
  }
}

void read_merges(const Json& merges, TokenizerBuilder& builder) {
  const std::string where = builder.source() + ": model: merges";
  for (const Json& merge : merges) {
    if (!merge.is_array()) {
      builder.add_merge(io::json_string(merge, where));
      continue;
    }
    check_data(merge.size() == 2, "{}: expected two tokens, got {}", where, merge.size());
    builder.add_merge(io::json_string(merge[0], where), io::json_string(merge[1], where));
  }
}

void check_plain_model(const JsonFields& model) {
  const std::string& source = model.source();
  const std::string type = model.text("type").value_or("BPE");
  check_data(type == "BPE", "{}: model: type: expected BPE, got '{}'", source, printable(type));
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    check_data(model.text(affix).value_or("").empty(), "{}: model: {}: expected none, got '{}'",
               source, affix, printable(model.text(affix).value_or("")));
  }
  for (const char* flag : {"byte_fallback", "fuse_unk"}) {
    check_data(!model.flag(flag, false), "{}: model: {}: expected false, got true", source, flag);
  }
  const Json* dropout = model.find("dropout");
  check_data(dropout == nullptr || *dropout == 0, "{}: model: dropout: expected none, got {}",
             source, dropout == nullptr ? "none" : dropout->type_name());
}

void read_model(const JsonFields& model, TokenizerBuilder& builder) {
  check_plain_model(model);
  const Json* vocabulary = model.object("vocab");
  check_data(vocabulary != nullptr, "{}: model: vocab: expected an object, got none",
             builder.source());
  read_vocabulary(*vocabulary, builder);
  if (const Json* merges = model.array("merges")) read_merges(*merges, builder);
  builder.settings().ignore_merges = model.flag("ignore_merges", false);
  if (const auto unknown = model.text("unk_token")) {
    builder.settings().unknown = builder.find(*unknown);
    check_data(builder.settings().unknown.has_value(),
               "{}: model: unk_token: expected a token of the vocabulary, got '{}'",
               builder.source(), printable(*unknown));
  }
}

// A template whose first part is a token puts that token in front of every text.
void read_post_processor(const Json& section, TokenizerBuilder& builder) {
  const std::string& source = builder.source();
  for (const Json* step : steps_of(section, source, "post_processor", "processors")) {
    const JsonFields fields(*step, source);
    if (type_of(fields, "post_processor") != "TemplateProcessing") continue;
    const Json* single = fields.array("single");
    if (single == nullptr || single->empty()) continue;
    const Json* token = JsonFields((*single)[0], source).object("SpecialToken");
    if (token == nullptr) continue;
    const std::string content = JsonFields(*token, source).text("id").value_or("");
    builder.settings().bos = builder.find(content);
    check_data(builder.settings().bos.has_value(),
               "{}: post_processor: expected a token of the vocabulary, got '{}'", source,
               printable(content));
    builder.settings().wants_bos = true;
  }
}

}  // namespace

AddedTokenRule read_added_token(const Json& entry, const std::string& source) {
  const JsonFields fields(entry, source);
  const std::optional<std::string> content = fields.text("content");
  check_data(content.has_value(), "{}: added token: content: expected a string, got none", source);
  AddedTokenRule rule;
  rule.token.content = *content;
  rule.token.special = fields.flag("special", false);
  rule.lstrip = fields.flag("lstrip", false);
  rule.rstrip = fields.flag("rstrip", false);
  rule.single_word = fields.flag("single_word", false);
  rule.normalized = fields.flag("normalized", !rule.token.special);
  return rule;
}

void read_vocabulary(const Json& vocabulary, TokenizerBuilder& builder) {
  const std::string where = builder.source() + ": vocabulary";
  for (const auto& [spelling, id] : io::json_object(vocabulary, where).items()) {
    builder.add_token(spelling, io::json_integer(id, where));
  }
}

void read_tokenizer_json(std::string_view text, TokenizerBuilder& builder) {
  const Json root = io::parse_json(text, builder.source());
  const JsonFields fields(root, builder.source());
  if (const Json* normalizer = fields.object("normalizer")) read_normalizer(*normalizer, builder);
  const Json* pretokenizer = fields.object("pre_tokenizer");
  check_data(pretokenizer != nullptr, "{}: pre_tokenizer: expected an object, got none",
             builder.source());
  read_pretokenizer(*pretokenizer, builder);
  if (const Json* added = fields.array("added_tokens")) read_added_tokens(*added, builder);
  const Json* model = fields.object("model");
  check_data(model != nullptr, "{}: model: expected an object, got none", builder.source());
  read_model(JsonFields(*model, builder.source()), builder);
  if (const Json* post = fields.object("post_processor")) read_post_processor(*post, builder);
}

std::unique_ptr<Tokenizer> load_tokenizer_json(std::string_view json_text,
                                               const std::string& name) {
  TokenizerBuilder builder(name);
  read_tokenizer_json(json_text, builder);
  return builder.build();
}

}  // namespace spb::text
