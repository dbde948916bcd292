#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "io/atomic_file.h"
#include "io/checkpoint.h"
#include "io/extents.h"
#include "io/json.h"
#include "io/mapped_tensors.h"
#include "io/reader.h"

namespace spb::io {
namespace {

constexpr uint64_t kMaxHeaderBytes = uint64_t{32} << 20;  // some 200,000 tensors

constexpr std::array<std::pair<std::string_view, DType>, 6> kDTypes = {{
    {"F32", DType::kF32},
    {"F16", DType::kF16},
    {"BF16", DType::kBF16},
    {"I8", DType::kI8},
    {"I32", DType::kI32},
    {"I64", DType::kI64},
}};

DType dtype_of(const std::string& text, std::string_view where) {
  for (const auto& [name, dtype] : kDTypes) {
    if (name == text) return dtype;
  }
  fail(ErrorKind::kData, "{}: dtype: expected F32, F16, BF16, I8, I32 or I64, got {}", where,
       printable(text));
}

const Json& member(const Json& object, const char* key, std::string_view where) {
  const Json* found = find_member(object, key);
  check_data(found != nullptr, "{}: expected the key '{}', got none", where, key);
  return *found;
}

std::vector<int64_t> integers(const Json& value, const std::string& where, size_t max_count) {
  json_array(value, where);
  check_data(value.size() <= max_count, "{}: expected at most {} elements, got {}", where,
             max_count, value.size());
  std::vector<int64_t> out;
  for (const Json& element : value) out.push_back(json_integer(element, where));
  return out;
}

struct Description {
  std::string name;
  DType dtype;
  std::vector<int64_t> dims;
  Extent extent;  // relative to the data section
};

Description describe(const std::string& file, const std::string& name, const Json& value,
                     uint64_t data_bytes) {
  const std::string where = fmt::format("{}: tensor '{}'", file, printable(name));
  json_object(value, where);
  Description out;
  out.name = name;
  out.dtype = dtype_of(json_string(member(value, "dtype", where), where + ": dtype"), where);
  out.dims = integers(member(value, "shape", where), where + ": shape", Shape::kMaxRank);
  const auto offsets = integers(member(value, "data_offsets", where), where + ": data_offsets", 2);
  const std::optional<int64_t> bytes = tensor_bytes(out.dtype, out.dims);
  check_data(bytes.has_value(), "{}: shape: expected positive dimensions below 2^63 bytes, got {}",
             where, format_dims(out.dims));
  check_data(offsets.size() == 2 && offsets[0] >= 0 && offsets[1] >= offsets[0] &&
                 static_cast<uint64_t>(offsets[1]) <= data_bytes,
             "{}: data_offsets: expected a range in {} bytes of data, got {} (truncated file?)",
             where, data_bytes, format_dims(offsets));
  check_data(offsets[1] - offsets[0] == *bytes,
             "{}: data_offsets: expected {} bytes for {} {}, got {}", where, *bytes,
             spb::name(out.dtype), format_dims(out.dims), offsets[1] - offsets[0]);
  out.extent = {static_cast<uint64_t>(offsets[0]), static_cast<uint64_t>(offsets[1]), 0};
  return out;
}

// Tensors must tile the data section: no overlap, no hidden bytes between or after them.
void check_tiling(const std::string& file, const std::vector<Description>& tensors,
                  uint64_t data_start, uint64_t data_bytes) {
  uint64_t expected = 0;
  for (const Description& tensor : tensors) {
    check_data(tensor.extent.begin == expected,
               "{}: byte {}: tensor '{}': data_offsets: expected to begin at {} where the tensor "
               "before ends, got {}",
               file, data_start + tensor.extent.begin, printable(tensor.name), expected,
               tensor.extent.begin);
    expected = tensor.extent.end;
  }
  check_data(expected == data_bytes, "{}: byte {}: expected the end of the file, got {} more bytes",
             file, data_start + expected, data_bytes - expected);
}

std::unique_ptr<TensorSource> parse(std::unique_ptr<MappedFile> mapped) {
  auto source = std::make_unique<MappedTensors>(std::move(mapped));
  const std::string& path = source->path();
  Reader reader(source->file().bytes(), path);
  const auto header_bytes = reader.read<uint64_t>("header length");
  const uint64_t limit = std::min(kMaxHeaderBytes, reader.remaining());
  reader.require(header_bytes <= limit, "header length: expected at most {}, got {}", limit,
                 header_bytes);
  JsonLimits limits;
  limits.max_depth = 8;
  limits.duplicates = DuplicateKeys::kRefuse;
  const Json header = parse_json(reader.take_text(header_bytes, "header"), path, limits);
  json_object(header, path + ": header");

  const uint64_t data_start = reader.offset();
  const auto data = reader.take(reader.remaining(), "data");
  std::vector<Description> tensors;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    tensors.push_back(describe(path, name, value, data.size()));
  }
  std::sort(tensors.begin(), tensors.end(), [](const Description& a, const Description& b) {
    return a.extent.begin < b.extent.begin;
  });
  check_tiling(path, tensors, data_start, data.size());
  for (Description& tensor : tensors) {
    const auto bytes = data.subspan(tensor.extent.begin, tensor.extent.end - tensor.extent.begin);
    const ConstTensorView view(source->aligned(bytes, tensor.dtype), tensor.dtype,
                               Shape(tensor.dims));
    source->add({std::move(tensor.name), view, path});
  }
  return source;
}

std::string_view dtype_name(DType dtype, std::string_view where) {
  for (const auto& [name, known] : kDTypes) {
    if (known == dtype) return name;
  }
  fail(ErrorKind::kUsage, "{}: dtype: expected a plain one, got {}", where, spb::name(dtype));
}

// Header text padded with blanks so that data begins at a multiple of 64. Fills in the offsets.
std::string header_text(const std::string& path, const std::vector<TensorEntry>& tensors) {
  auto header = Json::object();
  int64_t offset = 0;
  for (const TensorEntry& tensor : tensors) {
    const std::string where = fmt::format("{}: tensor '{}'", path, printable(tensor.name));
    check(!header.contains(tensor.name) && tensor.name != "__metadata__",
          "{}: name: expected once and not reserved", where);
    check(tensor.view.defined() && tensor.view.contiguous() && tensor.view.bytes() > 0,
          "{}: expected contiguous elements, got shape {}", where, tensor.view.shape().to_string());
    auto dims = Json::array();
    for (int i = 0; i < tensor.view.shape().rank(); ++i) dims.push_back(tensor.view.shape()[i]);
    const int64_t end = offset + tensor.view.bytes();
    header[tensor.name] = {{"dtype", dtype_name(tensor.view.dtype(), where)},
                           {"shape", std::move(dims)},
                           {"data_offsets", {offset, end}}};
    offset = end;
  }
  try {
    std::string text = header.dump();
    text.append((64 - (text.size() + sizeof(uint64_t)) % 64) % 64, ' ');
    return text;
  } catch (const Json::exception&) {
    fail(ErrorKind::kUsage, "{}: tensor names: expected UTF-8, got other bytes", path);
  }
}

}  // namespace

std::unique_ptr<TensorSource> open_safetensors(const std::string& path) {
  return parse(MappedFile::open(path));
}

std::unique_ptr<TensorSource> open_safetensors_bytes(std::span<const std::byte> bytes,
                                                     std::string name) {
  return parse(MappedFile::copy_of(bytes, std::move(name)));
}

void write_safetensors(const std::string& path, std::span<const TensorEntry> tensors) {
  // Wide elements first: without gaps, that alone keeps every tensor aligned to its element size.
  std::vector<TensorEntry> order(tensors.begin(), tensors.end());
  std::stable_sort(order.begin(), order.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return block_bytes(a.view.dtype()) > block_bytes(b.view.dtype());
  });
  const std::string header = header_text(path, order);
  const uint64_t header_bytes = header.size();
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(std::as_bytes(std::span(header)));
  for (const TensorEntry& tensor : order) {
    file.write({tensor.view.data(), static_cast<size_t>(tensor.view.bytes())});
  }
  file.commit();
}

}  // namespace spb::io
