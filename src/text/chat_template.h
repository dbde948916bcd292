// ChatTemplate: the prompt text of a conversation.
//
// Recognises the ChatML family (Qwen2, SmolLM2, SpikingBrain) from the Jinja text a model ships and
// renders it natively, with the model's own default system message. A template of another family
// is reported as unsupported with its first line; `--template chatml` forces ChatML.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace spb::text {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant" or "tool"
  std::string content;
};

class ChatTemplate {
 public:
  // ChatML with the given default system message (none: no system turn is added).
  explicit ChatTemplate(std::optional<std::string> default_system = std::nullopt)
      : default_system_(std::move(default_system)) {}

  // From the Jinja source of tokenizer_config.json or tokenizer.chat_template. Data error when it
  // is of another family.
  static ChatTemplate from_jinja(std::string_view jinja);

  const std::optional<std::string>& default_system() const { return default_system_; }

  // The text up to and including the header of the assistant's turn (add_generation_prompt).
  // Usage error on an unknown role or an empty conversation. Message content is plain text: it must
  // be encoded without parse_special where it comes from a stranger; see encode_chat.
  std::string render(std::span<const ChatMessage> messages,
                     bool add_generation_prompt = true) const;

  // The same text in parts: markers of turns, and what lies between two of them. A text holds the
  // name of the role and the content together, because they are tokenized together.
  struct Part {
    std::string text;
    bool is_marker = false;
  };
  std::vector<Part> parts(std::span<const ChatMessage> messages,
                          bool add_generation_prompt = true) const;

 private:
  std::optional<std::string> default_system_;
  bool wraps_tool_replies_ = false;  // Qwen2.5: in <tool_response>, as a turn of the user
};

// The tokens of a conversation. Only the markers of turns become special tokens: a message that
// contains "<|im_end|>" stays text, so nobody can forge a turn. For messages without the text of an
// added token the result equals encode(render(messages)). Starts with the beginning-of-sequence
// token where the tokenizer wants one.
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                 std::span<const ChatMessage> messages,
                                 bool add_generation_prompt = true);

}  // namespace spb::text
