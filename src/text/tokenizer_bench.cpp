// Speed of encoding and decoding on a made-up language: words of one to six syllables, and a
// vocabulary of 30,000 merges that knows all pairs of syllables and some triples. A text must come
// back before it is timed.
#include <benchmark/benchmark.h>

#include "core/rng.h"
#include "io/json.h"
#include "text/tokenizer.h"

namespace spb::text {
namespace {

std::vector<std::string> syllables() {
  std::vector<std::string> out;
  for (const char consonant : std::string_view("bcdfghjklmnpqrstvwxz")) {
    for (const char vowel : std::string_view("aeiou")) out.push_back({consonant, vowel});
  }
  return out;
}

std::unique_ptr<Tokenizer> made_up_tokenizer() {
  io::Json vocabulary = io::Json::object();
  io::Json merges = io::Json::array();
  const auto add = [&](const std::string& token) { vocabulary.emplace(token, vocabulary.size()); };
  const auto merge = [&](const std::string& left, const std::string& right) {
    if (vocabulary.contains(left + right)) return;
    merges.push_back({left, right});
    add(left + right);
  };
  for (char c = 'a'; c <= 'z'; ++c) add({c});
  add("\u0120");  // a space
  const std::vector<std::string> parts = syllables();
  for (const std::string& part : parts) merge({part[0]}, {part[1]});
  for (const std::string& first : parts) {
    for (const std::string& second : parts) merge(first, second);
  }
  Rng rng(1);
  const auto any = [&] { return parts[static_cast<size_t>(rng.below(std::ssize(parts)))]; };
  for (int i = 0; i < 20000; ++i) merge(any() + any(), any());
  const io::Json json = {{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                         {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}}};
  return load_tokenizer_json(json.dump(), "made-up language");
}

// Words of a list of 20,000, the first ones more often, as in prose.
std::string made_up_text(size_t bytes) {
  const std::vector<std::string> parts = syllables();
  Rng rng(2);
  std::vector<std::string> words(20000);
  for (std::string& word : words) {
    for (int64_t left = 1 + rng.below(6); left > 0; --left) {
      word += parts[static_cast<size_t>(rng.below(std::ssize(parts)))];
    }
  }
  std::string text;
  while (text.size() < bytes) {
    const double share = rng.uniform();
    const double index = share * share * share * static_cast<double>(words.size());
    text += words[static_cast<size_t>(index)] + " ";
  }
  text.resize(bytes);
  return text;
}

void encode(benchmark::State& state, const std::string& text) {
  const auto tokenizer = made_up_tokenizer();
  if (tokenizer->decode(tokenizer->encode(text)) != text) {
    return state.SkipWithError("the text does not come back");
  }
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->encode(text));
  state.SetBytesProcessed(state.iterations() * std::ssize(text));
}

void encode_prose(benchmark::State& state) {
  encode(state, made_up_text(static_cast<size_t>(state.range(0))));
}
BENCHMARK(encode_prose)->Arg(1 << 10)->Arg(1 << 20)->Unit(benchmark::kMillisecond);

// Bytes per second must not fall with the length.
void encode_endless_word(benchmark::State& state) {
  const std::string syllable = "ba";
  std::string word;
  while (std::ssize(word) < state.range(0)) word += syllable;
  encode(state, word);
}
BENCHMARK(encode_endless_word)->Arg(1 << 16)->Arg(1 << 20)->Unit(benchmark::kMillisecond);

void decode(benchmark::State& state) {
  const auto tokenizer = made_up_tokenizer();
  const std::string text = made_up_text(1 << 20);
  const std::vector<int32_t> ids = tokenizer->encode(text);
  if (tokenizer->decode(ids) != text) return state.SkipWithError("the text does not come back");
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->decode(ids));
  state.SetBytesProcessed(state.iterations() * std::ssize(text));
}
BENCHMARK(decode)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace spb::text

BENCHMARK_MAIN();
