// Sizes and places of tensors in files, computed without overflow.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace spb::io {

// Bytes of a contiguous tensor with `dims`, outermost first; nullopt when a dimension is below 1,
// when a row is not a whole number of blocks, or when the bytes do not fit in 63 bits.
std::optional<int64_t> tensor_bytes(DType dtype, std::span<const int64_t> dims);

// "[2, 3]" of dimensions that may be no valid Shape.
std::string format_dims(std::span<const int64_t> dims);

struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;  // one past the last byte
  size_t owner = 0;  // what it belongs to, an index of the caller
};

// Sorts by begin and returns the index of the first extent that begins before its predecessor ends;
// nullopt when none overlap.
std::optional<size_t> sort_and_find_overlap(std::vector<Extent>& extents);

}  // namespace spb::io
