// Shape: up to four dimensions, outermost first.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace spb {

class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);  // usage error on rank > 4 or a negative dimension
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return dims_[static_cast<size_t>(axis)]; }
  int64_t last() const { return rank_ == 0 ? 1 : dims_[static_cast<size_t>(rank_ - 1)]; }
  int64_t elements() const;       // product of all dimensions; 1 for rank 0
  int64_t rows() const;           // product of all but the last; 1 for rank 0
  std::string to_string() const;  // "[2, 3]"
  bool operator==(const Shape&) const = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

}  // namespace spb

// Lets a message name a shape without building the text while nothing is wrong:
// check(ok, "x: got {}", shape) costs nothing, shape.to_string() as an argument allocates always.
template <>
struct fmt::formatter<spb::Shape> : fmt::formatter<std::string_view> {
  template <typename FormatContext>
  auto format(const spb::Shape& shape, FormatContext& context) const {
    return fmt::formatter<std::string_view>::format(shape.to_string(), context);
  }
};
