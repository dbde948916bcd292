// MappedFile: the bytes of a file, read-only, without reading them into memory.
//
// Pages are read when they are touched and shared between processes. The file must not shrink while
// it is mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/buffer.h"

namespace spb::io {

class MappedFile {
 public:
  // System error when the file cannot be opened, data error when it is empty or not a regular file.
  static std::unique_ptr<MappedFile> open(const std::string& path);
  // A copy of bytes in memory, for tests and for data that is no file; `name` is for messages.
  static std::unique_ptr<MappedFile> copy_of(std::span<const std::byte> bytes, std::string name);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }  // at least 64-byte aligned

  // Advice to the operating system; never an error. `part` may lie elsewhere: then nothing happens.
  void advise_sequential() const;
  void will_need(std::span<const std::byte> part) const;  // start reading now
  // Takes the whole pages of `part` out of this process's memory; they are read again when touched.
  void drop(std::span<const std::byte> part) const;

 private:
  explicit MappedFile(std::string path) : path_(std::move(path)) {}
  void advise(std::span<const std::byte> part, int advice, bool whole_pages_only) const;

  std::string path_;
  std::span<const std::byte> bytes_;
  Buffer copy_;  // empty when mapped
};

}  // namespace spb::io
