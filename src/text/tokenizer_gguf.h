// The tokenizer keys of GGUF files.
//
//   tokenizer.ggml.model            "gpt2": byte-level byte-pair encoding
//   tokenizer.ggml.pre              the pre-tokenizer (pretokenizer.h)
//   tokenizer.ggml.tokens           by id; ordinary ones in the byte alphabet, added ones as they
//   are tokenizer.ggml.token_type       1 ordinary, 2 unknown, 3 control, 4 user defined, 5 unused,
//   6 byte tokenizer.ggml.merges           "left right", by rank
//   tokenizer.ggml.{bos,eos,eot,eom}_token_id, tokenizer.ggml.add_bos_token
// Types 2 and 3 are special added tokens, 4 are added tokens, 5 and 6 are no tokens.
//
// Other programs ignore these keys of ours, written only where they differ from what the
// pre-tokenizer implies:
//   tokenizer.spb.nfc, tokenizer.spb.ignore_merges   bool
//   tokenizer.spb.unknown_token_id  stands for a byte that has no token. Files name an unknown
//   token
//                                   in tokenizer.ggml also where the reference leaves such bytes
//                                   out
//   tokenizer.spb.added_flags       id, flags, id, flags, ...: lstrip 1, rstrip 2, single_word 4,
//                                   normalized 8, an ordinary token as well 16; tokens not named
//                                   have none
#pragma once

#include "text/tokenizer_builder.h"

namespace spb::text {

void write_tokenizer_metadata(const TokenizerParts& parts, const std::vector<Merge>& merges,
                              io::GgufMetadata& metadata);

}  // namespace spb::text
