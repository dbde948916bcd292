// A tokenizer.json of the 256 bytes and the ChatML markers, for models with at least 259 tokens:
// byte b has the id of its place in the byte alphabet, <|endoftext|> 256, <|im_start|> 257,
// <|im_end|> 258.
#pragma once

#include <string>

namespace spb::golden {

void write_byte_tokenizer(const std::string& folder);

}  // namespace spb::golden
