#include "io/extents.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace spb::io {

std::optional<int64_t> tensor_bytes(DType dtype, std::span<const int64_t> dims) {
  int64_t elements = 1;
  for (const int64_t dim : dims) {
    if (dim < 1 || __builtin_mul_overflow(elements, dim, &elements)) return std::nullopt;
  }
  if (!dims.empty() && dims.back() % block_elements(dtype) != 0) return std::nullopt;
  if (dims.empty() && !is_plain(dtype)) return std::nullopt;
  int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / block_elements(dtype), block_bytes(dtype), &bytes)) {
    return std::nullopt;
  }
  return bytes;
}

std::string format_dims(std::span<const int64_t> dims) {
  return fmt::format("[{}]", fmt::join(dims, ", "));
}

std::optional<size_t> sort_and_find_overlap(std::vector<Extent>& extents) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].begin < extents[i - 1].end) return i;
  }
  return std::nullopt;
}

}  // namespace spb::io
