#include "io/gguf.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <unordered_set>

#include "io/gguf_format.h"
#include "io/gguf_parse.h"
#include "io/mapped_file.h"

namespace spb::io {
namespace {

class MappedGguf final : public GgufFile {
 public:
  explicit MappedGguf(std::unique_ptr<MappedFile> first) : path_(first->path()) {
    GgufPart part = parse_gguf(*first);
    metadata_ = std::move(part.metadata);
    tensors_ = std::move(part.tensors);
    files_.push_back(std::move(first));
  }

  const std::vector<TensorEntry>& tensors() const override { return tensors_; }
  const std::string& path() const override { return path_; }
  const GgufMetadata& metadata() const override { return metadata_; }
  int64_t file_bytes() const override {
    int64_t bytes = 0;
    for (const auto& file : files_) bytes += static_cast<int64_t>(file->bytes().size());
    return bytes;
  }
  void will_need(const TensorEntry& entry) const override {
    for (const auto& file : files_) file->will_need(data_of(entry));
  }
  void drop(const TensorEntry& entry) const override {
    for (const auto& file : files_) file->drop(data_of(entry));
  }

  int64_t split_count() const { return metadata_.get_integer("split.count").value_or(1); }
  void add_other_parts();

 private:
  static std::span<const std::byte> data_of(const TensorEntry& entry) {
    return {entry.view.data(), static_cast<size_t>(entry.view.bytes())};
  }
  void add_part(const std::string& path, int64_t index);
  void check_names_and_count() const;

  std::string path_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  GgufMetadata metadata_;
  std::vector<TensorEntry> tensors_;
};

std::string part_suffix(int64_t index, int64_t count) {
  return fmt::format("-{:05}-of-{:05}.gguf", index + 1, count);
}

void MappedGguf::add_other_parts() {
  const int64_t count = split_count();
  if (count == 0 || count == 1) return;
  check_data(count > 1 && count <= 65535, "{}: key 'split.count': expected 1 to 65535, got {}",
             path_, count);
  const int64_t number = metadata_.get_integer("split.no").value_or(-1);
  check_data(number == 0, "{}: key 'split.no': expected 0, the first part of a split file, got {}",
             path_, number);
  const std::string suffix = part_suffix(0, count);
  check_data(path_.ends_with(suffix),
             "{}: the first of {} parts: expected a name that ends in '{}'", path_, count, suffix);
  const std::string stem = path_.substr(0, path_.size() - suffix.size());
  for (int64_t i = 1; i < count; ++i) add_part(stem + part_suffix(i, count), i);
  check_names_and_count();
}

void MappedGguf::add_part(const std::string& path, int64_t index) {
  auto file = MappedFile::open(path);
  GgufPart part = parse_gguf(*file);
  const auto number = part.metadata.get_integer("split.no");
  check_data(number == index, "{}: key 'split.no': expected {}, got {}", path, index,
             number.value_or(-1));
  const auto count = part.metadata.get_integer("split.count");
  check_data(count == split_count(), "{}: key 'split.count': expected {} as in {}, got {}", path,
             split_count(), path_, count.value_or(-1));
  for (TensorEntry& entry : part.tensors) tensors_.push_back(std::move(entry));
  files_.push_back(std::move(file));
}

void MappedGguf::check_names_and_count() const {
  std::unordered_set<std::string_view> names;
  for (const TensorEntry& entry : tensors_) {
    check_data(names.insert(entry.name).second,
               "{}: tensor '{}': expected in one part only, got it in another one too", entry.file,
               printable(entry.name));
  }
  const auto total = metadata_.get_integer("split.tensors.count");
  check_data(!total || *total == static_cast<int64_t>(tensors_.size()),
             "{}: key 'split.tensors.count': expected {} as in the parts, got {}", path_,
             tensors_.size(), total.value_or(-1));
}

}  // namespace

std::unique_ptr<GgufFile> GgufFile::open(const std::string& path) {
  auto file = std::make_unique<MappedGguf>(MappedFile::open(path));
  file->add_other_parts();
  return file;
}

std::unique_ptr<GgufFile> open_gguf_bytes(std::span<const std::byte> bytes, std::string name) {
  auto file = std::make_unique<MappedGguf>(MappedFile::copy_of(bytes, std::move(name)));
  const int64_t parts = file->split_count();
  check_data(parts == 0 || parts == 1, "{}: key 'split.count': expected a whole file, got {} parts",
             file->path(), parts);
  return file;
}

bool is_gguf(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return false;
  uint32_t magic = 0;
  const ssize_t got = read(descriptor, &magic, sizeof(magic));
  close(descriptor);
  return got == static_cast<ssize_t>(sizeof(magic)) && magic == kGgufMagic;
}

}  // namespace spb::io
