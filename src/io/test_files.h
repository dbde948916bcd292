// What the tests of this folder share: bytes, files in a folder of their own, and expected errors.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>

#include "core/error.h"
#include "io/tensor_source.h"

namespace spb::io {

// Little-endian bytes, appended.
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    text.append(raw, sizeof(T));
    return *this;
  }
  Bytes& raw(std::string_view more) {
    text += more;
    return *this;
  }
  Bytes& pad_to(size_t alignment) {
    text.append((alignment - text.size() % alignment) % alignment, '\0');
    return *this;
  }
  std::span<const std::byte> span() const { return std::as_bytes(std::span(text)); }

  std::string text;
};

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "spb_io_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }

  std::string path() const { return path_.string(); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, std::string_view content) const {
    std::ofstream(file(name), std::ios::binary) << content;
    return file(name);
  }
  size_t count() const {
    size_t files = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path_)) ++files;
    return files;
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Expects an Error of this kind on one line that contains all the parts.
inline void expect_error(ErrorKind kind, std::initializer_list<std::string_view> parts,
                         const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "expected an error about " << *parts.begin();
  } catch (const Error& error) {
    const std::string_view message = error.what();
    EXPECT_EQ(error.kind(), kind) << message;
    EXPECT_EQ(message.find('\n'), std::string_view::npos) << message;
    for (const std::string_view part : parts) {
      EXPECT_NE(message.find(part), std::string_view::npos) << part << " not in: " << message;
    }
  }
}

// Reads every byte of every tensor: a sanitizer sees those that lie outside the file.
inline uint64_t sum_of_bytes(const TensorSource& source) {
  uint64_t sum = 0;
  for (const TensorEntry& tensor : source.tensors()) {
    const std::byte* data = tensor.view.data();
    for (int64_t i = 0; i < tensor.view.bytes(); ++i) sum += std::to_integer<uint64_t>(data[i]);
  }
  return sum;
}

// Every prefix of a valid file must be refused as malformed; every single flipped bit must be
// refused or give a source that can be read.
inline void expect_survives_damage(
    const std::string& valid,
    const std::function<std::unique_ptr<TensorSource>(std::span<const std::byte>)>& open) {
  sum_of_bytes(*open(bytes_of(valid)));
  for (size_t length = 0; length < valid.size(); ++length) {
    expect_error(ErrorKind::kData, {"expected"}, [&] { open(bytes_of(valid.substr(0, length))); });
  }
  std::string damaged = valid;
  for (size_t bit = 0; bit < 8 * valid.size(); ++bit) {
    const char mask = static_cast<char>(1 << bit % 8);
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ mask);
    try {
      sum_of_bytes(*open(bytes_of(damaged)));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    }
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ mask);
  }
}

}  // namespace spb::io
