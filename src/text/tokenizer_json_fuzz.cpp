// Any bytes as tokenizer.json, then the rest of the input as text for what was loaded.
#include <algorithm>
#include <cstdlib>

#include "core/error.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();  // what the fuzzer looks for
}

void use(const spb::text::Tokenizer& tokenizer, std::string_view text) {
  for (const bool parse_special : {true, false}) {
    const auto ids = tokenizer.encode(text, {parse_special, true});
    spb::text::StreamDetokenizer stream(tokenizer, true);
    std::string streamed;
    for (const int32_t id : ids) streamed += stream.push(id);
    streamed += stream.flush();
    require(streamed == spb::text::to_utf8(tokenizer.decode(ids, true)));
  }
  spb::io::GgufMetadata metadata;
  tokenizer.write_metadata(metadata);
  const auto again = spb::text::load_tokenizer_gguf(metadata);
  require(again->vocab_size() == tokenizer.vocab_size());
  require(again->encode(text) == tokenizer.encode(text));
}

}  // namespace

// The first byte that is zero ends the JSON: JSON itself has none.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size);
  std::unique_ptr<spb::text::Tokenizer> tokenizer;
  try {
    tokenizer = spb::text::load_tokenizer_json(input.substr(0, end), "fuzz");
  } catch (const spb::Error& error) {
    require(error.kind() == spb::ErrorKind::kData);
    return 0;
  }
  use(*tokenizer, input.substr(std::min(end + 1, size)));
  use(*tokenizer, input);
  return 0;
}
