// Tokenizer: byte-level byte-pair encoding, as Qwen2, SmolLM2 and Llama 3 use it.
//
// Text is cut at added tokens, then by the pre-tokenizer's regular expression, then every piece is
// merged by rank. Any byte string is accepted: malformed UTF-8 is first replaced by U+FFFD, one for
// each maximal ill-formed part, as the reference tokenizer does. A byte without a token (SmolLM2
// lacks some control characters) is left out, as there, unless the file names an unknown token. So
// encoding fails only for a text of 1 GiB or more. Ids are checked: decoding an id outside the
// vocabulary is a usage error; an id that the vocabulary skips decodes to nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"

namespace spb::text {

struct EncodeOptions {
  bool parse_special = true;  // recognise added tokens such as <|im_end|> in the text; false: none
  bool add_bos = false;       // put the beginning-of-sequence token first when there is one
};

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;  // hidden by decode() unless asked for
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::vector<int32_t> encode(std::string_view text,
                                      const EncodeOptions& options = {}) const = 0;
  // The bytes of the tokens, possibly cut inside a character. Special tokens are left out unless
  // `keep_special`.
  virtual std::string decode(std::span<const int32_t> ids, bool keep_special = false) const = 0;
  // Number of ids, holes included: every id is < vocab_size().
  virtual int64_t vocab_size() const = 0;
  virtual bool is_special(int32_t id) const = 0;
  virtual std::optional<int32_t> find(
      std::string_view token) const = 0;  // by content, e.g. "<|im_end|>"
  virtual std::optional<int32_t> bos() const = 0;
  virtual std::optional<int32_t> eos() const = 0;
  // Tokens that end a reply: eos and the end-of-turn tokens that exist (<|im_end|>, <|endoftext|>,
  // ...).
  virtual const std::vector<int32_t>& end_tokens() const = 0;
  // True when the model expects a beginning-of-sequence token in front of every text.
  virtual bool wants_bos() const = 0;

  // What it takes to store this tokenizer in a GGUF file (tokenizer.ggml.*).
  virtual void write_metadata(io::GgufMetadata& metadata) const = 0;
};

// A folder of a Hugging Face model: tokenizer.json, or vocab.json + merges.txt; with
// tokenizer_config.json, added_tokens.json and generation_config.json where present.
std::unique_ptr<Tokenizer> load_tokenizer_folder(const std::string& folder);
std::unique_ptr<Tokenizer> load_tokenizer_json(std::string_view json, const std::string& name);
std::unique_ptr<Tokenizer> load_tokenizer_gguf(const io::GgufMetadata& metadata);

// Turns a stream of tokens into text that is always whole UTF-8: bytes of an unfinished character
// wait for the next token; bytes that can never become one are replaced by U+FFFD.
class StreamDetokenizer {
 public:
  explicit StreamDetokenizer(const Tokenizer& tokenizer, bool keep_special = false)
      : tokenizer_(tokenizer), keep_special_(keep_special) {}

  std::string push(int32_t id);
  std::string flush();  // what is left at the end of the text

 private:
  const Tokenizer& tokenizer_;
  bool keep_special_;
  std::string pending_;
};

}  // namespace spb::text
