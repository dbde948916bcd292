// PreTokenizer: cuts text into the pieces inside which byte pairs are merged.
//
// Each family of models has one regular expression. It covers every text, so the pieces put
// together are the text. Expressions other than those listed here are refused when a tokenizer is
// loaded: an approximate cut would silently give a model other tokens than it was trained on.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace spb::text {

enum class PreTokenizerKind {
  kGpt2,    // contractions, words, runs of digits
  kQwen2,   // words with one leading character, single digits, line breaks
  kLlama3,  // as kQwen2 with up to three digits
  kSmolLm,  // as kGpt2 with every digit on its own
};

// The name in tokenizer.ggml.pre: "gpt-2", "qwen2", "llama-bpe", "smollm".
std::string_view ggml_name(PreTokenizerKind kind);
std::optional<PreTokenizerKind> parse_ggml_name(std::string_view name);  // aliases too

// The kind that a "Split" section of tokenizer.json asks for with this expression.
std::optional<PreTokenizerKind> kind_of_split(std::string_view regex);

class PreTokenizer {
 public:
  explicit PreTokenizer(PreTokenizerKind kind);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;

  PreTokenizerKind kind() const { return kind_; }

  // Walks over one text. Several cursors may use a PreTokenizer at once.
  class Cursor {
   public:
    explicit Cursor(const PreTokenizer& owner);
    ~Cursor();
    Cursor(const Cursor&) = delete;
    Cursor& operator=(const Cursor&) = delete;

    void start(std::string_view text) { rest_ = text; }  // well-formed UTF-8
    // The next piece; empty at the end of the text.
    std::string_view next();

   private:
    struct State;
    const PreTokenizer& owner_;
    std::unique_ptr<State> state_;
    std::string_view rest_;
  };

 private:
  struct Program;
  PreTokenizerKind kind_;
  std::unique_ptr<Program> program_;
};

}  // namespace spb::text
