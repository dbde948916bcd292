#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "core/error.h"

namespace spb::io {
namespace {

namespace fs = std::filesystem;

std::string resolve(const std::string& path) {
  check(!path.empty(), "output file: expected a name, got an empty one");
  std::error_code ignored;
  const fs::path resolved = fs::weakly_canonical(path, ignored);
  const std::string target = resolved.empty() ? path : resolved.string();
  const fs::file_status status = fs::status(target, ignored);
  check(!fs::exists(status) || fs::is_regular_file(status),
        "{}: expected the name of a file to write, got {}", path,
        fs::is_directory(status) ? "a folder" : "a device, pipe or socket");
  return target;
}

// A name of its own for every file of every process, also after a crash left one behind.
std::string temporary_name(const std::string& target) {
  static std::atomic<int> counter{0};
  return fmt::format("{}.{}-{}.partial", target, getpid(), counter++);
}

void sync_folder_of(const std::string& file) {
  const fs::path folder = fs::path(file).parent_path();
  const int descriptor =
      open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  fsync(descriptor);  // some file systems cannot; the rename itself has succeeded
  close(descriptor);
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(path), target_(resolve(path)) {
  do {
    temporary_ = temporary_name(target_);
    descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EEXIST);
  if (descriptor_ < 0) throw_system_error(path_ + ": create");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  constexpr size_t kMaxWrite = size_t{1} << 30;  // the kernel takes at most 2 GiB at once
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), std::min(bytes.size(), kMaxWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      throw_system_error(
          fmt::format("{}: writing {} bytes at byte {}", path_, bytes.size(), position_));
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
    position_ += written;
  }
}

void AtomicFile::write_zeros(int64_t count) {
  static constexpr std::byte kZeros[4096] = {};
  for (; count > 0; count -= static_cast<int64_t>(sizeof(kZeros))) {
    write({kZeros, std::min(static_cast<size_t>(count), sizeof(kZeros))});
  }
}

void AtomicFile::commit() {
  if (fsync(descriptor_) != 0) {
    throw_system_error(fmt::format("{}: flushing {} bytes to the disk", path_, position_));
  }
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (close(descriptor) != 0) throw_system_error(path_ + ": close");
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) {
    throw_system_error(path_ + ": rename of the finished file");
  }
  temporary_.clear();
  sync_folder_of(target_);
}

void write_file(const std::string& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

}  // namespace spb::io
