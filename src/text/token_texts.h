// TokenTexts: the bytes of every token by id, and ids by bytes.
//
// An open-addressing table of (hash, id): a load of 150,000 tokens and as many merges looks up half
// a million texts, which is most of the time it takes to load a tokenizer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace spb::text {

class TokenTexts {
 public:
  int64_t size() const { return static_cast<int64_t>(texts_.size()); }
  const std::string& operator[](int32_t id) const { return texts_[static_cast<size_t>(id)]; }
  auto begin() const { return texts_.begin(); }
  auto end() const { return texts_.end(); }

  // New ids have empty texts: no such token.
  void resize(int64_t count) { texts_.resize(static_cast<size_t>(count)); }
  void set(int32_t id, std::string text) { texts_[static_cast<size_t>(id)] = std::move(text); }

  // Makes an id findable by its text; returns the id that already is, if any, and then changes
  // nothing. The text must not be set again.
  std::optional<int32_t> index(int32_t id);
  std::optional<int32_t> find(std::string_view text) const;
  bool has_indexed() const { return indexed_ > 0; }

 private:
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;  // -1: free
  };

  // The slot of `text`, or the free one where it belongs.
  size_t slot_of(std::string_view text, uint32_t hash) const;
  void grow();

  std::vector<std::string> texts_;
  std::vector<Slot> slots_;  // a power of two of them, at least half free
  size_t indexed_ = 0;
};

}  // namespace spb::text
