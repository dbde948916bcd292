#include "core/shape.h"

#include <fmt/ranges.h>

#include "core/error.h"

namespace spb {

Shape::Shape(std::initializer_list<int64_t> dims)
    : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  check(dims.size() <= kMaxRank, "shape: rank: expected at most {}, got {}", kMaxRank, dims.size());
  int64_t product = 1;
  for (size_t i = 0; i < dims.size(); ++i) {
    check(dims[i] >= 0, "shape: dimension {}: expected >= 0, got {}", i, dims[i]);
    check(!__builtin_mul_overflow(product, dims[i], &product),
          "shape: product of dimensions does not fit in 63 bits");
    dims_[i] = dims[i];
  }
}

int64_t Shape::elements() const { return rows() * last(); }

int64_t Shape::rows() const {
  int64_t product = 1;
  for (int i = 0; i + 1 < rank_; ++i) product *= dims_[static_cast<size_t>(i)];
  return product;
}

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(std::span(dims_.data(), static_cast<size_t>(rank_)), ", "));
}

}  // namespace spb
