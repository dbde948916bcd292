// MappedTensors: the TensorSource of one mapped file, with copies of what the file misaligns.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "io/mapped_file.h"
#include "io/tensor_source.h"

namespace spb::io {

class MappedTensors final : public TensorSource {
 public:
  explicit MappedTensors(std::unique_ptr<MappedFile> file)
      : file_(std::move(file)), path_(file_->path()) {}

  const std::vector<TensorEntry>& tensors() const override { return tensors_; }
  const std::string& path() const override { return path_; }
  void will_need(const TensorEntry& entry) const override { file_->will_need(bytes_of(entry)); }
  void drop(const TensorEntry& entry) const override { file_->drop(bytes_of(entry)); }

  const MappedFile& file() const { return *file_; }
  void add(TensorEntry entry) { tensors_.push_back(std::move(entry)); }

  // `data` itself when it is aligned for `dtype`, else a copy that lives as long as the source.
  const std::byte* aligned(std::span<const std::byte> data, DType dtype);

 private:
  static std::span<const std::byte> bytes_of(const TensorEntry& entry) {
    return {entry.view.data(), static_cast<size_t>(entry.view.bytes())};
  }

  std::unique_ptr<MappedFile> file_;
  std::string path_;
  std::vector<TensorEntry> tensors_;
  std::vector<Buffer> copies_;
};

}  // namespace spb::io
