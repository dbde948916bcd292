// TensorSource: named tensors in a file, whatever its format.
//
// The memory of every view belongs to the source (a file mapping) and lives as long as it. Opening
// a file validates every name, dtype, shape and extent; reading a view afterwards cannot leave the
// mapping. A file changed by somebody else while it is mapped is outside this promise.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
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
};

}  // namespace spb::io
