#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "core/error.h"

namespace spb::io {
namespace {

struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) close(value);
  }
};

}  // namespace

std::unique_ptr<MappedFile> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must fail below, not wait for a writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.value < 0) throw_system_error(path + ": open");
  struct stat status = {};
  if (fstat(file.value, &status) != 0) throw_system_error(path + ": stat");
  check_data(S_ISREG(status.st_mode), "{}: expected a regular file, got {}", path,
             S_ISDIR(status.st_mode) ? "a folder" : "a device, pipe or socket");
  check_data(status.st_size > 0, "{}: expected content, got an empty file", path);
  const auto size = static_cast<size_t>(status.st_size);
  void* memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.value, 0);
  if (memory == MAP_FAILED) throw_system_error(fmt::format("{}: mapping {} bytes", path, size));
  std::unique_ptr<MappedFile> mapped(new MappedFile(path));
  mapped->bytes_ = {static_cast<const std::byte*>(memory), size};
  return mapped;
}

std::unique_ptr<MappedFile> MappedFile::copy_of(std::span<const std::byte> bytes,
                                                std::string name) {
  check_data(!bytes.empty(), "{}: expected content, got an empty file", name);
  std::unique_ptr<MappedFile> file(new MappedFile(std::move(name)));
  file->copy_ = Buffer(static_cast<int64_t>(bytes.size()));
  std::memcpy(file->copy_.data(), bytes.data(), bytes.size());
  file->bytes_ = {file->copy_.data(), bytes.size()};
  return file;
}

MappedFile::~MappedFile() {
  if (copy_.bytes() == 0 && !bytes_.empty()) {
    munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }
}

void MappedFile::advise(std::span<const std::byte> part, int advice, bool whole_pages_only) const {
  if (copy_.bytes() > 0) return;  // dropping pages of a copy would lose them
  const auto begin = reinterpret_cast<uintptr_t>(part.data());
  const auto first = reinterpret_cast<uintptr_t>(bytes_.data());
  if (begin < first || part.size() > bytes_.size() || begin - first > bytes_.size() - part.size()) {
    return;
  }
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t end = begin + part.size();
  // Neighbors share the pages at the ends of a tensor.
  const uintptr_t from = (whole_pages_only ? begin + page - 1 : begin) / page * page;
  const uintptr_t to = whole_pages_only ? end / page * page : end;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, advice);
}

void MappedFile::advise_sequential() const { advise(bytes_, MADV_SEQUENTIAL, false); }

void MappedFile::will_need(std::span<const std::byte> part) const {
  advise(part, MADV_WILLNEED, false);
}

void MappedFile::drop(std::span<const std::byte> part) const { advise(part, MADV_DONTNEED, true); }

}  // namespace spb::io
