#include "golden/byte_tokenizer.h"

#include <fmt/format.h>

#include <fstream>

#include "io/json.h"

namespace spb::golden {
namespace {

std::string utf8(int code_point) {
  std::string text;
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  text += static_cast<char>(0xc0 | (code_point >> 6));
  text += static_cast<char>(0x80 | (code_point & 0x3f));
  return text;
}

// The byte alphabet of byte-level BPE: printable bytes stand for themselves, the others for the
// characters from 256 on.
std::string letter_of(int byte, int& next) {
  const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  return utf8(printable ? byte : next++);
}

}  // namespace

void write_byte_tokenizer(const std::string& folder) {
  io::Json vocab = io::Json::object();
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) vocab[letter_of(byte, next)] = byte;
  io::Json added = io::Json::array();
  int id = 256;
  for (const char* content : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    added.push_back({{"id", id++},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const io::Json pre_tokenizer = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  const io::Json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", pre_tokenizer},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", io::Json::array()}}}};
  const io::Json config = {
      {"eos_token", "<|im_end|>"},
      {"chat_template",
       "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
       "'\n'}}{% endfor %}{{ '<|im_start|>assistant\n' }}"}};
  std::ofstream(folder + "/tokenizer.json") << tokenizer.dump();
  std::ofstream(folder + "/tokenizer_config.json") << config.dump();
}

}  // namespace spb::golden
