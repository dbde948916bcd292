// AtomicFile: a file that appears under its name complete, or not at all.
//
// Bytes go to a temporary file in the same folder. commit() flushes it to the disk and renames it;
// without commit() the destructor removes it. An existing file is replaced only by commit(); a
// symbolic link keeps pointing where it did and its target is replaced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace spb::io {

class AtomicFile {
 public:
  // System error when the folder cannot be written; usage error when `path` is no regular file.
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // A system error names the file, the byte offset and the bytes that did not fit.
  void write(std::span<const std::byte> bytes);
  void write_zeros(int64_t count);
  int64_t position() const { return position_; }  // bytes written

  void commit();

 private:
  std::string path_;    // for messages
  std::string target_;  // path_ with links resolved
  std::string temporary_;
  int descriptor_ = -1;
  int64_t position_ = 0;
};

// Writes a small file in one go.
void write_file(const std::string& path, std::span<const std::byte> bytes);

}  // namespace spb::io
