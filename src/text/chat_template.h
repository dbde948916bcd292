// ChatTemplate: the prompt text of a conversation.
//
// Recognises the ChatML family (Qwen2, SmolLM2, SpikingBrain) from the Jinja text a model ships and
// renders it natively, with the model's own default system message. A template of another family
// is reported as unsupported with its first line; `--template chatml` forces ChatML.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

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

  // From the Jinja source of tokenizer_config.json or tokenizer.chat_template.
  static ChatTemplate from_jinja(std::string_view jinja);

  // The text up to and including the header of the assistant's turn (add_generation_prompt).
  // Usage error on an unknown role or an empty conversation. Message content is plain text: it must
  // be encoded without parse_special where it comes from a stranger; see encode_chat.
  std::string render(std::span<const ChatMessage> messages,
                     bool add_generation_prompt = true) const;

 private:
  std::optional<std::string> default_system_;
};

}  // namespace spb::text
