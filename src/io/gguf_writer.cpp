#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "core/buffer.h"
#include "io/atomic_file.h"
#include "io/extents.h"
#include "io/gguf.h"
#include "io/gguf_format.h"

namespace spb::io {
namespace {

template <typename T>
bool fits(int64_t value) {
  return value >= std::numeric_limits<T>::min() &&
         value <= static_cast<int64_t>(std::numeric_limits<T>::max());
}

bool fits_f32(double value) { return !std::isfinite(value) || std::fabs(value) <= FLT_MAX; }

// The part of the file before tensor data.
class Header {
 public:
  std::span<const std::byte> bytes() const { return std::as_bytes(std::span(bytes_)); }

  template <typename T>
  void put(T value) {
    const size_t end = bytes_.size();
    bytes_.resize(end + sizeof(T));
    std::memcpy(bytes_.data() + end, &value, sizeof(T));
  }
  void put_text(std::string_view text) {
    put<uint64_t>(text.size());
    bytes_.insert(bytes_.end(), text.begin(), text.end());
  }
  template <typename T>
  void put_value(GgufType type, T value) {
    put(type);
    put(value);
  }

  void put(const GgufValue& value) {
    std::visit([this](const auto& v) { put_scalar(v); }, value);
  }

 private:
  void put_scalar(int64_t value) {
    if (fits<uint32_t>(value)) return put_value(GgufType::kU32, static_cast<uint32_t>(value));
    if (fits<int32_t>(value)) return put_value(GgufType::kI32, static_cast<int32_t>(value));
    if (value > 0) return put_value(GgufType::kU64, static_cast<uint64_t>(value));
    put_value(GgufType::kI64, value);
  }
  void put_scalar(uint64_t value) {
    if (value <= INT64_MAX) return put_scalar(static_cast<int64_t>(value));
    put_value(GgufType::kU64, value);
  }
  void put_scalar(double value) {
    if (fits_f32(value)) return put_value(GgufType::kF32, static_cast<float>(value));
    put_value(GgufType::kF64, value);
  }
  void put_scalar(bool value) { put_value(GgufType::kBool, static_cast<uint8_t>(value)); }
  void put_scalar(const std::string& value) {
    put(GgufType::kString);
    put_text(value);
  }
  void put_scalar(const GgufArray& array) {
    put(GgufType::kArray);
    std::visit([this](const auto& elements) { put_elements(elements); }, array);
  }

  template <typename T, typename From>
  void put_numbers(GgufType type, const std::vector<From>& elements) {
    put_value<uint64_t>(type, elements.size());
    for (const From element : elements) put(static_cast<T>(element));
  }
  void put_elements(const std::vector<int64_t>& elements) {
    bool small = true;
    for (const int64_t element : elements) small = small && fits<int32_t>(element);
    if (small) return put_numbers<int32_t>(GgufType::kI32, elements);
    put_numbers<int64_t>(GgufType::kI64, elements);
  }
  void put_elements(const std::vector<double>& elements) {
    bool small = true;
    for (const double element : elements) small = small && fits_f32(element);
    if (small) return put_numbers<float>(GgufType::kF32, elements);
    put_numbers<double>(GgufType::kF64, elements);
  }
  void put_elements(const std::vector<bool>& elements) {
    put_numbers<uint8_t>(GgufType::kBool, elements);
  }
  void put_elements(const std::vector<std::string>& elements) {
    put_value<uint64_t>(GgufType::kString, elements.size());
    for (const std::string& element : elements) put_text(element);
  }

  std::vector<char> bytes_;
};

int64_t alignment_of(const std::string& path, const GgufMetadata& metadata) {
  const int64_t alignment =
      metadata.get_integer("general.alignment").value_or(kGgufDefaultAlignment);
  check(is_gguf_alignment(alignment),
        "{}: key 'general.alignment': expected a power of two from {} to {}, got {}", path,
        kGgufMinAlignment, kGgufMaxAlignment, alignment);
  return alignment;
}

// Checks the plan and returns the bytes of each tensor.
std::vector<int64_t> plan_bytes(const std::string& path, std::span<const GgufTensorPlan> tensors) {
  std::unordered_set<std::string_view> names;
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (const GgufTensorPlan& tensor : tensors) {
    const std::string shown = printable(tensor.name);
    check(!tensor.name.empty() && tensor.name.size() <= kGgufMaxNameBytes,
          "{}: tensor '{}': name: expected 1 to {} bytes, got {}", path, shown, kGgufMaxNameBytes,
          tensor.name.size());
    check(names.insert(tensor.name).second, "{}: tensor '{}': expected once, got twice", path,
          shown);
    std::vector<int64_t> dims;
    for (int i = 0; i < tensor.shape.rank(); ++i) dims.push_back(tensor.shape[i]);
    const auto bytes = tensor_bytes(tensor.dtype, dims);
    check(!dims.empty() && bytes.has_value(),
          "{}: tensor '{}': shape: expected 1 to 4 positive dimensions in whole blocks of {} {} "
          "elements, got {}",
          path, shown, block_elements(tensor.dtype), spb::name(tensor.dtype), format_dims(dims));
    check(tensor.fill != nullptr, "{}: tensor '{}': expected a source of data, got none", path,
          shown);
    check(!__builtin_add_overflow(total, *bytes, &total),
          "{}: tensor '{}': expected less than 2^63 bytes in all tensors, got more", path, shown);
    sizes.push_back(*bytes);
  }
  return sizes;
}

void put_metadata(Header& header, const std::string& path, const GgufMetadata& metadata) {
  const auto is_written = [](const GgufEntry& entry) { return !entry.key.starts_with("split."); };
  uint64_t count = 0;
  for (const GgufEntry& entry : metadata.entries()) count += is_written(entry);
  header.put<uint64_t>(count);
  for (const GgufEntry& entry : metadata.entries()) {
    if (!is_written(entry)) continue;
    check(!entry.key.empty() && entry.key.size() <= kGgufMaxNameBytes,
          "{}: key '{}': expected 1 to {} bytes, got {}", path, printable(entry.key),
          kGgufMaxNameBytes, entry.key.size());
    header.put_text(entry.key);
    header.put(entry.value);
  }
}

void put_tensors(Header& header, std::span<const GgufTensorPlan> tensors,
                 std::span<const int64_t> sizes, int64_t alignment) {
  uint64_t offset = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    header.put_text(tensors[i].name);
    const Shape& shape = tensors[i].shape;
    header.put(static_cast<uint32_t>(shape.rank()));
    for (int axis = shape.rank(); axis-- > 0;) header.put(shape[axis]);
    header.put(ggml_type_of(tensors[i].dtype));
    header.put(offset);
    offset = align_up(offset + static_cast<uint64_t>(sizes[i]), alignment);
  }
}

void pad(AtomicFile& file, int64_t alignment) {
  const auto position = static_cast<uint64_t>(file.position());
  file.write_zeros(static_cast<int64_t>(align_up(position, alignment) - position));
}

}  // namespace

void write_gguf(const std::string& path, const GgufMetadata& metadata,
                std::span<const GgufTensorPlan> tensors,
                const std::function<void(int64_t, int64_t)>& progress) {
  const int64_t alignment = alignment_of(path, metadata);
  const std::vector<int64_t> sizes = plan_bytes(path, tensors);
  Header header;
  header.put(kGgufMagic);
  header.put(kGgufVersion);
  header.put<uint64_t>(tensors.size());
  put_metadata(header, path, metadata);
  put_tensors(header, tensors, sizes, alignment);

  AtomicFile file(path);
  file.write(header.bytes());
  pad(file, alignment);
  int64_t total = 0;
  int64_t largest = 0;
  for (const int64_t size : sizes) {
    total += size;
    largest = std::max(largest, size);
  }
  Buffer buffer(largest);
  int64_t done = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::span data(buffer.data(), static_cast<size_t>(sizes[i]));
    tensors[i].fill(data);
    file.write(data);
    pad(file, alignment);
    done += sizes[i];
    if (progress) progress(done, total);
  }
  file.commit();
}

}  // namespace spb::io
