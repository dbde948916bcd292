// TensorSource: named tensors in a file, whatever its format.
//
// The memory of every view belongs to the source (a file mapping) and lives as long as it. Opening
// a file validates every name, dtype, shape and extent; reading a view afterwards cannot leave the
// mapping. Every tensor has at least one element, and its data is aligned to its element type. A
// file changed by somebody else while it is mapped is outside this promise.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/tensor_view.h"

namespace spb::io {

struct TensorEntry {
  std::string name;
  ConstTensorView view;  // shape outermost first (GGUF stores it innermost first)
  std::string file;      // which shard, for messages
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual const std::vector<TensorEntry>& tensors() const = 0;  // in file order, names unique

  const TensorEntry* find(std::string_view name) const;  // nullptr when absent
  // Data error naming the source and the tensor when absent.
  const TensorEntry& at(std::string_view name) const;
  virtual const std::string& path() const = 0;

  // Advice to the operating system about the pages of one tensor of this source: start reading
  // them, or take them out of memory (they are read again when touched). Safe from any thread.
  virtual void will_need(const TensorEntry&) const {}
  virtual void drop(const TensorEntry&) const {}

 private:
  mutable std::once_flag indexed_;  // find() builds the index when it is first called
  mutable std::unordered_map<std::string_view, size_t> index_;
};

}  // namespace spb::io
