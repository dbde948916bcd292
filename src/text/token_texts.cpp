#include "text/token_texts.h"

#include <functional>
#include <utility>

namespace spb::text {
namespace {

uint32_t hash_of(std::string_view text) {
  return static_cast<uint32_t>(std::hash<std::string_view>()(text));
}

}  // namespace

size_t TokenTexts::slot_of(std::string_view text, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  while (slots_[at].id >= 0 && (slots_[at].hash != hash || (*this)[slots_[at].id] != text)) {
    at = (at + 1) & mask;
  }
  return at;
}

void TokenTexts::grow() {
  const std::vector<Slot> old = std::exchange(slots_, {});
  slots_.resize(old.empty() ? 1024 : old.size() * 2);
  const size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.id < 0) continue;
    size_t at = slot.hash & mask;
    while (slots_[at].id >= 0) at = (at + 1) & mask;
    slots_[at] = slot;
  }
}

std::optional<int32_t> TokenTexts::index(int32_t id) {
  if (2 * (indexed_ + 1) > slots_.size()) grow();
  const std::string& text = (*this)[id];
  const uint32_t hash = hash_of(text);
  Slot& slot = slots_[slot_of(text, hash)];
  if (slot.id >= 0) return slot.id;
  slot = {hash, id};
  ++indexed_;
  return std::nullopt;
}

std::optional<int32_t> TokenTexts::find(std::string_view text) const {
  if (slots_.empty()) return std::nullopt;
  const Slot& slot = slots_[slot_of(text, hash_of(text))];
  if (slot.id < 0) return std::nullopt;
  return slot.id;
}

}  // namespace spb::text
