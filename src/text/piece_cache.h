// PieceCache: the tokens of short pieces seen lately in one text. Words repeat, and finding one
// here is several times faster than merging its bytes again.
//
// Direct-mapped: a piece that falls into a taken place replaces what was there. One for each
// thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace spb::text {

class PieceCache {
 public:
  static constexpr size_t kLongestPiece = 15;  // bytes

  struct alignas(64) Entry {
    static constexpr size_t kMostIds = 11;

    uint64_t key[2] = {};  // the bytes, zeros, and the length in the last byte; never all zero
    uint32_t count = 0;
    int32_t ids[kMostIds] = {};

    std::span<const int32_t> tokens() const { return {ids, count}; }
  };
  static_assert(sizeof(Entry) == 64);

  // Costs 256 KiB, so it is not for short texts.
  PieceCache() : entries_(size_t{1} << kLogEntries) {}

  // The entry of `piece`, 1 to kLongestPiece bytes; a count of zero says that it is not known. The
  // caller may then fill it in with store().
  Entry& find(std::string_view piece) {
    uint64_t key[2] = {0, static_cast<uint64_t>(piece.size()) << 56};
    std::memcpy(key, piece.data(), piece.size());
    const uint64_t hash = (key[0] ^ (key[1] * 0xbf58476d1ce4e5b9ull)) * 0x9e3779b97f4a7c15ull;
    Entry& entry = entries_[hash >> (64 - kLogEntries)];
    if (entry.key[0] != key[0] || entry.key[1] != key[1]) {
      entry.key[0] = key[0];
      entry.key[1] = key[1];
      entry.count = 0;
    }
    return entry;
  }

  // Keeps the tokens of the piece that `entry` was found for, when there are not too many.
  static void store(Entry& entry, std::span<const int32_t> tokens) {
    if (tokens.size() > Entry::kMostIds) return;
    std::copy(tokens.begin(), tokens.end(), entry.ids);
    entry.count = static_cast<uint32_t>(tokens.size());
  }

 private:
  static constexpr int kLogEntries = 12;
  std::vector<Entry> entries_;
};

}  // namespace spb::text
