// tokenizer.json: the one-file form of a Hugging Face tokenizer, byte-level BPE only.
//
// Read are added_tokens, normalizer (none or NFC), pre_tokenizer (those of pretokenizer.h),
// model (BPE) and, for a leading token, post_processor. What would change the tokens and is not
// supported is refused: other normalizers and expressions, add_prefix_space, dropout,
// byte_fallback, affixes of subwords.
#pragma once

#include <string>
#include <string_view>

#include "io/json.h"
#include "text/tokenizer_builder.h"

namespace spb::text {

// Fills a builder, so that a folder can add what its other files say.
void read_tokenizer_json(std::string_view json, TokenizerBuilder& builder);

// One entry of added_tokens, or of added_tokens_decoder in tokenizer_config.json.
AddedTokenRule read_added_token(const io::Json& entry, const std::string& source);

// The vocabulary object of tokenizer.json, or all of vocab.json.
void read_vocabulary(const io::Json& vocabulary, TokenizerBuilder& builder);

}  // namespace spb::text
