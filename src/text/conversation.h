// A conversation turn by turn: where the template comes from, and the tokens of a further turn.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "text/chat_template.h"

namespace spb::text {

// The Jinja template of a Hugging Face folder: chat_template.jinja, or "chat_template" of
// tokenizer_config.json (the one named "default" of a list). nullopt when there is none.
std::optional<std::string> find_chat_template(const std::string& folder);

// What follows a reply to ask the next question: the end of the reply's turn, the message, and the
// header of the next reply. `closed` says that the reply already ended with its end-of-turn token.
std::vector<int32_t> encode_next_turn(const Tokenizer& tokenizer, const ChatMessage& message,
                                      bool closed);

}  // namespace spb::text
