#include "text/conversation.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/error.h"
#include "io/json.h"

namespace spb::text {
namespace {

namespace fs = std::filesystem;

// "chat_template" is a string, or a list of {"name", "template"}.
std::optional<std::string> from_config(const io::Json& config, const std::string& file) {
  const io::Json* found = io::find_member(config, "chat_template");
  if (found == nullptr || found->is_null()) return std::nullopt;
  const std::string where = file + ": chat_template";
  if (!found->is_array()) return io::json_string(*found, where);
  for (const io::Json& entry : *found) {
    const io::Json* name = io::find_member(io::json_object(entry, where), "name");
    const io::Json* source = io::find_member(entry, "template");
    check_data(name != nullptr && source != nullptr, "{}: expected 'name' and 'template'", where);
    if (io::json_string(*name, where) == "default") return io::json_string(*source, where);
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> find_chat_template(const std::string& folder) {
  const fs::path jinja = fs::path(folder) / "chat_template.jinja";
  if (fs::exists(jinja)) {
    std::ifstream in(jinja, std::ios::binary);
    if (!in) throw_system_error(jinja.string());
    return std::string(std::istreambuf_iterator<char>(in), {});
  }
  const std::string config = (fs::path(folder) / "tokenizer_config.json").string();
  if (!fs::exists(config)) return std::nullopt;
  const io::Json json = io::read_json_file(config);
  return from_config(io::json_object(json, config), config);
}

std::vector<int32_t> encode_next_turn(const Tokenizer& tokenizer, const ChatMessage& message,
                                      bool closed) {
  std::vector<int32_t> ids = tokenizer.encode(closed ? "\n" : "<|im_end|>\n");
  const std::vector<int32_t> turn = encode_chat(tokenizer, ChatTemplate(), {&message, 1});
  // Only the start of a text is announced by a beginning-of-sequence token.
  const bool announced = tokenizer.wants_bos() && !turn.empty() && turn[0] == tokenizer.bos();
  ids.insert(ids.end(), turn.begin() + (announced ? 1 : 0), turn.end());
  return ids;
}

}  // namespace spb::text
