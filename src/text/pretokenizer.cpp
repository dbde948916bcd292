#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenizer.h"

#include <pcre2.h>

#include <array>
#include <limits>
#include <string>

#include "core/error.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

struct Family {
  PreTokenizerKind kind;
  std::array<std::string_view, 3> names;  // of tokenizer.ggml.pre; the first is written
  std::string_view split;                 // the expression in tokenizer.json
  std::string_view pattern;               // ours: see compile() for @
};

// The classes are written out: @ stands for the members of White_Space inside a class, because \s
// of PCRE2 has one character more (U+180E) than that of the reference.
//
// smollm is a cut at every digit followed by the expression of gpt-2 on each part. A digit ends a
// part, so white space in front of it counts as white space at the end of a text.
constexpr std::array<Family, 4> kFamilies{{
    {PreTokenizerKind::kGpt2,
     {"gpt-2", "phi-2", "olmo"},
     R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     R"('(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^@\p{L}\p{N}]+|[@]+(?![^@])|[@]+)"},
    {PreTokenizerKind::kQwen2,
     {"qwen2", "qwen2", "qwen2"},
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     R"((?i:'(?:[stmd]|re|ve|ll))|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^@\p{L}\p{N}]+[\r\n]*|[@]*[\r\n]+|[@]+(?![^@])|[@]+)"},
    {PreTokenizerKind::kLlama3,
     {"llama-bpe", "llama-v3", "llama3"},
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     R"((?i:'(?:[stmd]|re|ve|ll))|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^@\p{L}\p{N}]+[\r\n]*|[@]*[\r\n]+|[@]+(?![^@])|[@]+)"},
    {PreTokenizerKind::kSmolLm,
     {"smollm", "starcoder", "refact"},
     "",
     R"('(?:[stmd]|re|ve|ll)| ?\p{L}+|\p{N}| ?[^@\p{L}\p{N}]+|[@]+(?![^@\p{N}])|[@]+)"},
}};

constexpr std::string_view kWhiteSpace =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

const Family& family_of(PreTokenizerKind kind) {
  for (const Family& family : kFamilies) {
    if (family.kind == kind) return family;
  }
  fail(ErrorKind::kUsage, "pre-tokenizer: kind: expected a known one, got {}",
       static_cast<int>(kind));
}

pcre2_code* compile(std::string_view pattern) {
  std::string expanded;
  for (const char c : pattern) {
    if (c == '@') {
      expanded += kWhiteSpace;
    } else {
      expanded += c;
    }
  }
  int code = 0;
  size_t offset = 0;
  pcre2_code* compiled = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(expanded.data()), expanded.size(),
      PCRE2_ANCHORED | PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &code, &offset, nullptr);
  check(compiled != nullptr, "pre-tokenizer: expression: PCRE2 error {} at character {}", code,
        offset);
  return compiled;
}

}  // namespace

std::string_view ggml_name(PreTokenizerKind kind) { return family_of(kind).names[0]; }

std::optional<PreTokenizerKind> parse_ggml_name(std::string_view name) {
  for (const Family& family : kFamilies) {
    for (const std::string_view known : family.names) {
      if (known == name) return family.kind;
    }
  }
  return std::nullopt;
}

std::optional<PreTokenizerKind> kind_of_split(std::string_view regex) {
  for (const Family& family : kFamilies) {
    if (!regex.empty() && family.split == regex) return family.kind;
  }
  return std::nullopt;
}

struct PreTokenizer::Program {
  pcre2_code* code = nullptr;
  bool jit = false;

  explicit Program(std::string_view pattern) : code(compile(pattern)) {
    // Where the system forbids executable memory the interpreter does the same, slower.
    jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  }
  ~Program() { pcre2_code_free(code); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
};

PreTokenizer::PreTokenizer(PreTokenizerKind kind)
    : kind_(kind), program_(std::make_unique<Program>(family_of(kind).pattern)) {}
PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

struct PreTokenizer::Cursor::State {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);

  State() {
    if (match == nullptr || context == nullptr) {
      fail(ErrorKind::kSystem, "pre-tokenizer: out of memory");
    }
    // Every expression takes linear time: the only backtracking is over one run of white space. The
    // default limit counts those steps and would stop at a run of ten million spaces.
    pcre2_set_match_limit(context, std::numeric_limits<uint32_t>::max());
  }
  ~State() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

PreTokenizer::Cursor::Cursor(const PreTokenizer& owner)
    : owner_(owner), state_(std::make_unique<State>()) {}
PreTokenizer::Cursor::~Cursor() = default;

std::string_view PreTokenizer::Cursor::next() {
  if (rest_.empty()) return {};
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(rest_.data());
  const auto run = owner_.program_->jit ? pcre2_jit_match : pcre2_match;
  const int found = run(owner_.program_->code, subject, rest_.size(), 0, PCRE2_NO_UTF_CHECK,
                        state_->match, state_->context);
  // The expressions match everywhere; one character is the piece should a limit of PCRE2 be hit.
  const size_t length = found > 0 ? pcre2_get_ovector_pointer(state_->match)[1] : 0;
  const std::string_view piece = rest_.substr(0, length > 0 ? length : decode_utf8(rest_).length);
  rest_.remove_prefix(piece.size());
  return piece;
}

}  // namespace spb::text
