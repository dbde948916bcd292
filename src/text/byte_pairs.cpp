#include "text/byte_pairs.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace spb::text {
namespace {

constexpr uint32_t kNowhere = 0xffffffffu;

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t key) {
  key = (key ^ (key >> 31)) * 0x9e3779b97f4a7c15ull;
  return key ^ (key >> 29);
}

}  // namespace

BytePairs::BytePairs(std::vector<Merge> merges, const std::array<int32_t, 256>& byte_tokens,
                     int32_t unknown)
    : merges_(std::move(merges)), byte_tokens_(byte_tokens), unknown_(unknown) {
  slots_.resize(std::bit_ceil(merges_.size() * 2 + 1));
  mask_ = slots_.size() - 1;
  for (uint32_t rank = 0; rank < merges_.size(); ++rank) insert(rank);
}

void BytePairs::insert(uint32_t rank) {
  const uint64_t pair = pair_key(merges_[rank].left, merges_[rank].right);
  size_t at = mix(pair) & mask_;
  while (slots_[at].rank != kNoRank && slots_[at].pair != pair) at = (at + 1) & mask_;
  if (slots_[at].rank != kNoRank) {
    repeated_ = rank;
  } else {
    slots_[at] = {pair, rank};
  }
}

uint32_t BytePairs::rank_of(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  size_t at = mix(pair) & mask_;
  while (slots_[at].rank != kNoRank && slots_[at].pair != pair) at = (at + 1) & mask_;
  return slots_[at].rank;
}

void BytePairs::start(std::string_view piece, Workspace& workspace) const {
  auto& symbols = workspace.symbols;
  symbols.clear();
  workspace.heap.clear();
  for (const char byte : piece) {
    int32_t id = byte_tokens_[static_cast<unsigned char>(byte)];
    if (id == kNoToken) id = unknown_;
    if (id == kNoToken) continue;
    const auto index = static_cast<uint32_t>(symbols.size());
    symbols.push_back({id, index == 0 ? kNowhere : index - 1, index + 1});
  }
  if (!symbols.empty()) symbols.back().next = kNowhere;
}

// Puts the pair that begins at `left` on the heap when it has a merge.
void BytePairs::offer(uint32_t left, Workspace& workspace) const {
  if (left == kNowhere) return;
  const Symbol& symbol = workspace.symbols[left];
  if (symbol.next == kNowhere) return;
  const uint32_t rank = rank_of(symbol.id, workspace.symbols[symbol.next].id);
  if (rank == kNoRank) return;
  workspace.heap.push_back(static_cast<uint64_t>(rank) << 32 | left);
  std::push_heap(workspace.heap.begin(), workspace.heap.end(), std::greater<>());
}

void BytePairs::encode(std::string_view piece, Workspace& workspace,
                       std::vector<int32_t>& out) const {
  start(piece, workspace);
  auto& symbols = workspace.symbols;
  auto& heap = workspace.heap;
  for (uint32_t i = 0; i < symbols.size(); ++i) offer(i, workspace);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto left = static_cast<uint32_t>(heap.back());
    const Merge& merge = merges_[heap.back() >> 32];
    heap.pop_back();
    Symbol& symbol = symbols[left];
    const uint32_t right = symbol.next;
    // A merge nearby may have changed the pair since it was put on the heap.
    if (symbol.id != merge.left || right == kNowhere || symbols[right].id != merge.right) continue;
    symbol.id = merge.result;
    symbol.next = symbols[right].next;
    symbols[right].id = kNoToken;
    if (symbol.next != kNowhere) symbols[symbol.next].previous = left;
    offer(symbol.previous, workspace);
    offer(left, workspace);
  }
  for (const Symbol& symbol : symbols) {
    if (symbol.id != kNoToken) out.push_back(symbol.id);
  }
}

}  // namespace spb::text
