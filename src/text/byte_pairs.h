// BytePairs: merges the bytes of a piece of text into tokens.
//
// Starting from one token per byte, the adjacent pair with the lowest rank is merged, the leftmost
// of equals first, until no pair has a merge. A heap of candidate pairs makes that O(n log n).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace spb::text {

struct Merge {
  int32_t left;
  int32_t right;
  int32_t result;
};

class BytePairs {
 public:
  static constexpr int32_t kNoToken = -1;

  struct Symbol {
    int32_t id;
    uint32_t previous;
    uint32_t next;
  };
  // Memory reused from piece to piece; one for each thread.
  struct Workspace {
    std::vector<Symbol> symbols;
    std::vector<uint64_t> heap;  // rank << 32 | index of the left symbol
  };

  // merges[rank]. byte_tokens[byte] is kNoToken for a byte that has no
  // token: such bytes take `unknown`, or are left out when that is kNoToken.
  BytePairs(std::vector<Merge> merges, const std::array<int32_t, 256>& byte_tokens,
            int32_t unknown);

  const std::vector<Merge>& merges() const { return merges_; }
  // The rank of a merge whose pair has a lower rank, too; merges must not be used then.
  std::optional<uint32_t> repeated() const { return repeated_; }

  // Appends the tokens of `piece`, less than 2^32 - 1 bytes.
  void encode(std::string_view piece, Workspace& workspace, std::vector<int32_t>& out) const;

 private:
  static constexpr uint32_t kNoRank = 0xffffffffu;

  // Open addressing: a slot holds a pair and its rank.
  struct Slot {
    uint64_t pair = 0;
    uint32_t rank = kNoRank;
  };

  uint32_t rank_of(int32_t left, int32_t right) const;
  void insert(uint32_t rank);
  void start(std::string_view piece, Workspace& workspace) const;
  void offer(uint32_t left, Workspace& workspace) const;

  std::vector<Merge> merges_;
  std::array<int32_t, 256> byte_tokens_;
  int32_t unknown_;
  std::vector<Slot> slots_;
  size_t mask_;
  std::optional<uint32_t> repeated_;
};

}  // namespace spb::text
