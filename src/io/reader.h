// Reader: bounds-checked access to a span of little-endian bytes of a file.
//
// Every read checks the bytes left before it touches them. Errors are data errors of the form
// "file: byte N: context: what: expected X, got Y", where N is the offset in the file at which the
// item read last begins.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/error.h"

namespace spb::io {

// Tensors are views of file bytes, and all supported formats are little-endian.
static_assert(std::endian::native == std::endian::little);

class Reader {
 public:
  // `file` must outlive the reader. `base` is the offset of bytes[0] in the file.
  Reader(std::span<const std::byte> bytes, std::string_view file, uint64_t base = 0)
      : bytes_(bytes), file_(file), base_(base) {}

  uint64_t offset() const { return base_ + position_; }  // in the file
  uint64_t remaining() const { return bytes_.size() - position_; }

  // Named in messages until it is replaced: "tensor 'x'", "key 'y'".
  void set_context(std::string context) { context_ = std::move(context); }

  template <typename T>
  T read(std::string_view what) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  // The next `count` bytes, which are skipped.
  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    item_ = position_;
    if (count > remaining()) [[unlikely]]
      throw_too_short(count, what);
    const auto taken = bytes_.subspan(position_, static_cast<size_t>(count));
    position_ += static_cast<size_t>(count);
    return taken;
  }
  std::string_view take_text(uint64_t count, std::string_view what) {
    const auto bytes = take(count, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  // Up to and without the next '\n', which is skipped too.
  std::string_view take_line(std::string_view what);

  // `count` numbers of type T widened to Out. Nothing is allocated when they are not there.
  template <typename T, typename Out>
  std::vector<Out> read_array(uint64_t count, std::string_view what) {
    item_ = position_;
    require(count <= remaining() / sizeof(T), "{}: expected {} elements of {} bytes, got {} bytes",
            what, count, sizeof(T), remaining());
    const std::byte* from = take(count * sizeof(T), what).data();
    std::vector<Out> out(static_cast<size_t>(count));
    for (size_t i = 0; i < out.size(); ++i) {
      T value;
      std::memcpy(&value, from + i * sizeof(T), sizeof(T));
      out[i] = static_cast<Out>(value);
    }
    return out;
  }

  // Throws a data error at the item read last unless `condition` holds.
  template <typename... Args>
  void require(bool condition, fmt::format_string<Args...> format, Args&&... args) const {
    if (!condition) [[unlikely]]
      throw_error(fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  [[noreturn]] void throw_error(const std::string& message) const;
  [[noreturn]] void throw_too_short(uint64_t count, std::string_view what) const;

  std::span<const std::byte> bytes_;
  std::string_view file_;
  uint64_t base_;
  size_t position_ = 0;
  size_t item_ = 0;  // where the item read last begins
  std::string context_;
};

}  // namespace spb::io
