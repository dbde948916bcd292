#include "text/tokenizer.h"
#include "text/utf8.h"

namespace spb::text {

std::string StreamDetokenizer::push(int32_t id) {
  pending_ += tokenizer_.decode({&id, 1}, keep_special_);
  const size_t waiting = unfinished_suffix(pending_);
  std::string text = to_utf8(std::string_view(pending_).substr(0, pending_.size() - waiting));
  pending_.erase(0, pending_.size() - waiting);
  return text;
}

std::string StreamDetokenizer::flush() {
  std::string text = to_utf8(pending_);
  pending_.clear();
  return text;
}

}  // namespace spb::text
