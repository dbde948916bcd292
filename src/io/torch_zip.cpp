#include <unordered_map>
#include <utility>

#include "io/checkpoint.h"
#include "io/extents.h"
#include "io/mapped_tensors.h"
#include "io/pickle.h"
#include "io/zip_archive.h"

namespace spb::io {
namespace {

using Records = std::unordered_map<std::string_view, const ZipRecord*>;

// "archive/data.pkl" names the folder that all records are in.
const ZipRecord& find_pickle(const std::string& path, const std::vector<ZipRecord>& records) {
  const ZipRecord* found = nullptr;
  for (const ZipRecord& record : records) {
    if (!record.name.ends_with("/data.pkl")) continue;
    check_data(found == nullptr, "{}: expected one record */data.pkl, got '{}' and '{}'", path,
               printable(found == nullptr ? "" : found->name), printable(record.name));
    found = &record;
  }
  check_data(found != nullptr, "{}: expected a record */data.pkl, got none in {} records", path,
             records.size());
  return *found;
}

void check_byte_order(const std::string& path, const Records& records, const std::string& folder) {
  const auto found = records.find(folder + "byteorder");
  if (found == records.end()) return;  // older files: little-endian
  const auto data = found->second->data;
  const std::string_view order(reinterpret_cast<const char*>(data.data()), data.size());
  check_data(order == "little", "{}: byte order: expected 'little', got '{}'", path,
             printable(order));
}

bool is_contiguous(const PickledTensor& tensor) {
  int64_t expected = 1;
  for (size_t i = tensor.dims.size(); i-- > 0;) {
    // The stride of a dimension of one element moves nowhere and may be anything.
    if (tensor.dims[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.dims[i];
  }
  return true;
}

// Bytes of the tensor inside its storage.
Extent place(const PickledTensor& tensor, const std::string& where, const ZipRecord& record) {
  const std::optional<int64_t> bytes = tensor_bytes(tensor.dtype, tensor.dims);
  check_data(bytes.has_value(), "{}: shape: expected positive dimensions below 2^63 bytes, got {}",
             where, format_dims(tensor.dims));
  check_data(is_contiguous(tensor), "{}: strides: expected contiguous elements for {}, got {}",
             where, format_dims(tensor.dims), format_dims(tensor.strides));
  const int64_t element = block_bytes(tensor.dtype);
  const auto record_bytes = static_cast<int64_t>(record.data.size());
  check_data(tensor.storage_elements >= 0 && tensor.storage_elements <= record_bytes / element,
             "{}: storage: expected at most {} elements of {} in record '{}', got {}", where,
             record_bytes / element, name(tensor.dtype), printable(record.name),
             tensor.storage_elements);
  const int64_t elements = *bytes / element;
  check_data(tensor.offset >= 0 && tensor.offset <= tensor.storage_elements &&
                 elements <= tensor.storage_elements - tensor.offset,
             "{}: expected inside a storage of {} elements, got {} elements from {}", where,
             tensor.storage_elements, elements, tensor.offset);
  const auto begin = static_cast<uint64_t>(tensor.offset * element);
  return {begin, begin + static_cast<uint64_t>(*bytes), 0};
}

std::unique_ptr<TensorSource> parse(std::unique_ptr<MappedFile> mapped) {
  auto source = std::make_unique<MappedTensors>(std::move(mapped));
  const std::string& path = source->path();
  const auto file = source->file().bytes();
  check_data(file[0] != std::byte{0x80},
             "{}: expected a zip archive, got a legacy PyTorch file (save it again with PyTorch "
             "1.6 or newer)",
             path);
  const std::vector<ZipRecord> records = read_zip(source->file());
  Records by_name;
  for (const ZipRecord& record : records) by_name.emplace(record.name, &record);
  const ZipRecord& pickle = find_pickle(path, records);
  const std::string folder = pickle.name.substr(0, pickle.name.rfind('/') + 1);
  check_byte_order(path, by_name, folder);

  std::unordered_map<const ZipRecord*, const std::byte*> storages;  // aligned, several tensors each
  for (PickledTensor& tensor : read_pickled_tensors(pickle.data, path, pickle.offset)) {
    const std::string where = fmt::format("{}: tensor '{}'", path, printable(tensor.name));
    const auto record = by_name.find(folder + "data/" + tensor.storage_key);
    check_data(record != by_name.end(), "{}: storage: expected a record 'data/{}', got none", where,
               printable(tensor.storage_key));
    const Extent extent = place(tensor, where, *record->second);
    auto& storage = storages[record->second];
    if (storage == nullptr) storage = source->aligned(record->second->data, DType::kI64);
    const ConstTensorView view(storage + extent.begin, tensor.dtype, Shape(tensor.dims));
    source->add({std::move(tensor.name), view, path});
  }
  check_data(!source->tensors().empty(), "{}: expected a dictionary of tensors, got no tensor",
             path);
  return source;
}

}  // namespace

std::unique_ptr<TensorSource> open_torch_zip(const std::string& path) {
  return parse(MappedFile::open(path));
}

std::unique_ptr<TensorSource> open_torch_zip_bytes(std::span<const std::byte> bytes,
                                                   std::string name) {
  return parse(MappedFile::copy_of(bytes, std::move(name)));
}

}  // namespace spb::io
