#include "text/chat_template.h"

#include <algorithm>
#include <array>

#include "core/error.h"

namespace spb::text {
namespace {

constexpr std::string_view kTurnStart = "<|im_start|>";
constexpr std::string_view kTurnEnd = "<|im_end|>";
constexpr std::string_view kSystemHeader = "<|im_start|>system\n";

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// The string literal of Jinja that begins at the quote text[0]; takes it off the front of `text`.
std::string take_literal(std::string_view& text) {
  const char quote = text[0];
  std::string value;
  size_t i = 1;
  for (; i < text.size() && text[i] != quote; ++i) {
    const bool escape = text[i] == '\\' && i + 1 < text.size();
    if (!escape) {
      value += text[i];
      continue;
    }
    const char c = text[++i];
    value += c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
  }
  text.remove_prefix(std::min(text.size(), i + 1));
  return value;
}

// The string literals in the {{ }} and {% %} parts of a template.
std::vector<std::string> literals_of(std::string_view jinja) {
  std::vector<std::string> literals;
  bool in_code = false;
  while (!jinja.empty()) {
    const std::string_view two = jinja.substr(0, 2);
    if (!in_code) {
      in_code = two == "{{" || two == "{%";
      jinja.remove_prefix(1);
    } else if (jinja[0] == '\'' || jinja[0] == '"') {
      literals.push_back(take_literal(jinja));
    } else {
      in_code = two != "}}" && two != "%}";
      jinja.remove_prefix(1);
    }
  }
  return literals;
}

// A whole system turn written out is what the template adds when the conversation has none.
std::optional<std::string> default_system_of(const std::vector<std::string>& literals) {
  for (const std::string& literal : literals) {
    if (!literal.starts_with(kSystemHeader)) continue;
    const size_t end = literal.find(kTurnEnd, kSystemHeader.size());
    if (end == std::string::npos) continue;
    return literal.substr(kSystemHeader.size(), end - kSystemHeader.size());
  }
  return std::nullopt;
}

void check_conversation(std::span<const ChatMessage> messages) {
  constexpr std::array<std::string_view, 4> kRoles = {"system", "user", "assistant", "tool"};
  check(!messages.empty(), "chat: messages: expected at least one, got none");
  for (const ChatMessage& message : messages) {
    check(std::find(kRoles.begin(), kRoles.end(), message.role) != kRoles.end(),
          "chat: role: expected system, user, assistant or tool, got '{}'",
          printable(message.role));
  }
}

// Adds text behind the last marker.
void add_text(std::vector<ChatTemplate::Part>& parts, std::string_view text) {
  if (parts.empty() || parts.back().is_marker) parts.push_back({"", false});
  parts.back().text += text;
}

void open_turn(std::vector<ChatTemplate::Part>& parts, std::string_view role) {
  parts.push_back({std::string(kTurnStart), true});
  add_text(parts, role);
}

void close_turn(std::vector<ChatTemplate::Part>& parts) {
  parts.push_back({std::string(kTurnEnd), true});
  add_text(parts, "\n");
}

void add_turn(std::vector<ChatTemplate::Part>& parts, std::string_view role,
              std::string_view content) {
  open_turn(parts, role);
  add_text(parts, "\n");
  add_text(parts, content);
  close_turn(parts);
}

}  // namespace

ChatTemplate ChatTemplate::from_jinja(std::string_view jinja) {
  const std::vector<std::string> literals = literals_of(jinja);
  const auto mentions = [&](std::string_view part) {
    return std::any_of(literals.begin(), literals.end(),
                       [&](const std::string& literal) { return contains(literal, part); });
  };
  // Templates that hide former reasoning render earlier turns differently.
  const bool reasons = contains(jinja, "reasoning_content") || mentions("</think>");
  check_data(mentions(kTurnStart) && mentions(kTurnEnd) && !reasons,
             "chat template: expected ChatML (<|im_start|>role ... <|im_end|>), got '{}'; "
             "--template chatml uses ChatML all the same",
             printable(jinja.substr(0, jinja.find('\n'))));
  ChatTemplate chat(default_system_of(literals));
  chat.wraps_tool_replies_ = mentions("<tool_response>");
  return chat;
}

std::vector<ChatTemplate::Part> ChatTemplate::parts(std::span<const ChatMessage> messages,
                                                    bool add_generation_prompt) const {
  check_conversation(messages);
  std::vector<Part> parts;
  if (default_system_ && messages[0].role != "system") add_turn(parts, "system", *default_system_);
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role != "tool" || !wraps_tool_replies_) {
      add_turn(parts, message.role, message.content);
      continue;
    }
    // Replies of tools in a row share one turn.
    if (i == 0 || messages[i - 1].role != "tool") open_turn(parts, "user");
    add_text(parts, "\n<tool_response>\n");
    add_text(parts, message.content);
    add_text(parts, "\n</tool_response>");
    if (i + 1 == messages.size() || messages[i + 1].role != "tool") close_turn(parts);
  }
  if (add_generation_prompt) {
    open_turn(parts, "assistant");
    add_text(parts, "\n");
  }
  return parts;
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages,
                                 bool add_generation_prompt) const {
  std::string text;
  for (const Part& part : parts(messages, add_generation_prompt)) text += part.text;
  return text;
}

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                 std::span<const ChatMessage> messages,
                                 bool add_generation_prompt) {
  std::vector<int32_t> ids;
  if (tokenizer.wants_bos() && tokenizer.bos()) ids.push_back(*tokenizer.bos());
  for (const ChatTemplate::Part& part : chat_template.parts(messages, add_generation_prompt)) {
    EncodeOptions options;
    options.parse_special = part.is_marker;
    const std::vector<int32_t> more = tokenizer.encode(part.text, options);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  return ids;
}

}  // namespace spb::text
