#include "io/gguf_parse.h"

#include <algorithm>
#include <array>
#include <unordered_set>
#include <utility>

#include "io/extents.h"
#include "io/gguf_format.h"
#include "io/reader.h"

namespace spb::io {
namespace {

// What the smallest key and the smallest tensor description occupy: bounds their counts.
constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

class Parser {
 public:
  explicit Parser(const MappedFile& file) : file_(file), reader_(file.bytes(), file.path()) {}

  GgufPart parse() {
    part_.metadata.set_source(file_.path());
    read_header();
    for (uint64_t i = 0; i < num_keys_; ++i) read_entry();
    read_alignment();
    part_.tensors.reserve(num_tensors_);
    extents_.reserve(num_tensors_);
    for (uint64_t i = 0; i < num_tensors_; ++i) read_tensor();
    place_tensors();
    return std::move(part_);
  }

 private:
  void read_header();
  void read_entry();
  GgufType read_type(std::string_view what);
  GgufValue read_value(GgufType type);
  GgufValue read_integer(GgufType type);
  GgufArray read_array();
  std::vector<int64_t> read_integers(GgufType type, uint64_t count);
  std::string read_string(std::string_view what);
  std::string read_name(std::string_view what);
  bool read_bool();
  void read_alignment();
  void read_tensor();
  std::vector<int64_t> read_dims();
  void place_tensors();
  void spend(uint64_t bytes);
  template <typename T>
  void expect_elements(uint64_t count, uint64_t element_bytes);

  const MappedFile& file_;
  Reader reader_;
  GgufPart part_;
  uint64_t num_tensors_ = 0;
  uint64_t num_keys_ = 0;
  uint64_t budget_ = kGgufMaxMetadataBytes;
  int64_t alignment_ = kGgufDefaultAlignment;
  std::vector<Extent> extents_;  // relative to the data section, in the order of part_.tensors
  std::vector<std::pair<DType, Shape>> types_;
  std::unordered_set<std::string> names_;
};

void Parser::read_header() {
  reader_.require(reader_.remaining() >= 24, "header: expected at least 24 bytes, got {}",
                  reader_.remaining());
  const auto magic = reader_.read<uint32_t>("magic");
  reader_.require(magic == kGgufMagic, "magic: expected 'GGUF', got {:#010x}", magic);
  const auto version = reader_.read<uint32_t>("version");
  reader_.require((version & 0xffffu) != 0, "version: expected a little-endian file, got {:#010x}",
                  version);
  reader_.require(version == 2 || version == 3, "version: expected 2 or 3, got {}", version);
  num_tensors_ = reader_.read<uint64_t>("tensor count");
  const uint64_t tensor_limit =
      std::min(kGgufMaxTensors, (file_.bytes().size() - 24) / kMinTensorBytes);
  reader_.require(num_tensors_ <= tensor_limit,
                  "tensor count: expected at most {} in a file of {} bytes, got {}", tensor_limit,
                  file_.bytes().size(), num_tensors_);
  num_keys_ = reader_.read<uint64_t>("key count");
  const uint64_t key_limit = std::min(kGgufMaxKeys, reader_.remaining() / kMinKeyBytes);
  reader_.require(num_keys_ <= key_limit,
                  "key count: expected at most {} in a file of {} bytes, got {}", key_limit,
                  file_.bytes().size(), num_keys_);
}

void Parser::read_entry() {
  reader_.set_context({});
  std::string key = read_name("key");
  reader_.set_context(fmt::format("key '{}'", printable(key)));
  reader_.require(part_.metadata.find(key) == nullptr, "expected once, got twice");
  GgufValue value = read_value(read_type("type"));
  part_.metadata.set(std::move(key), std::move(value));
}

GgufType Parser::read_type(std::string_view what) {
  const auto number = reader_.read<uint32_t>(what);
  reader_.require(number < kNumGgufTypes, "{}: expected below {}, got {}", what, kNumGgufTypes,
                  number);
  return static_cast<GgufType>(number);
}

GgufValue Parser::read_value(GgufType type) {
  switch (type) {
    case GgufType::kF32: return static_cast<double>(reader_.read<float>("value"));
    case GgufType::kF64: return reader_.read<double>("value");
    case GgufType::kBool: return read_bool();
    case GgufType::kString: return read_string("value");
    case GgufType::kArray: return read_array();
    default: return read_integer(type);
  }
}

GgufValue Parser::read_integer(GgufType type) {
  if (type != GgufType::kU64) return read_integers(type, 1).front();
  const auto value = reader_.read<uint64_t>("value");
  if (value <= INT64_MAX) return static_cast<int64_t>(value);
  return value;
}

std::vector<int64_t> Parser::read_integers(GgufType type, uint64_t count) {
  switch (type) {
    case GgufType::kU8: return reader_.read_array<uint8_t, int64_t>(count, "value");
    case GgufType::kI8: return reader_.read_array<int8_t, int64_t>(count, "value");
    case GgufType::kU16: return reader_.read_array<uint16_t, int64_t>(count, "value");
    case GgufType::kI16: return reader_.read_array<int16_t, int64_t>(count, "value");
    case GgufType::kU32: return reader_.read_array<uint32_t, int64_t>(count, "value");
    case GgufType::kI32: return reader_.read_array<int32_t, int64_t>(count, "value");
    default: break;
  }
  std::vector<int64_t> values = reader_.read_array<int64_t, int64_t>(count, "value");
  if (type == GgufType::kU64) {
    const bool fit = std::all_of(values.begin(), values.end(), [](int64_t v) { return v >= 0; });
    reader_.require(fit, "u64 array: expected elements below 2^63, got a larger one");
  }
  return values;
}

template <typename T>
void Parser::expect_elements(uint64_t count, uint64_t element_bytes) {
  reader_.require(count <= reader_.remaining() / element_bytes,
                  "array length: expected at most {} in the bytes left, got {}",
                  reader_.remaining() / element_bytes, count);
  spend(count * sizeof(T));
}

GgufArray Parser::read_array() {
  const GgufType type = read_type("element type");
  reader_.require(type != GgufType::kArray, "element type: expected a scalar, got array");
  const auto count = reader_.read<uint64_t>("array length");
  if (type == GgufType::kString) {
    expect_elements<std::string>(count, sizeof(uint64_t));
    std::vector<std::string> strings;
    strings.reserve(count);
    for (uint64_t i = 0; i < count; ++i) strings.push_back(read_string("array element"));
    return strings;
  }
  if (type == GgufType::kBool) {
    expect_elements<bool>(count, 1);
    std::vector<bool> booleans(count);
    for (uint64_t i = 0; i < count; ++i) booleans[i] = read_bool();
    return booleans;
  }
  expect_elements<int64_t>(count, 1);
  if (type == GgufType::kF32) return reader_.read_array<float, double>(count, "array");
  if (type == GgufType::kF64) return reader_.read_array<double, double>(count, "array");
  return read_integers(type, count);
}

std::string Parser::read_string(std::string_view what) {
  const auto length = reader_.read<uint64_t>(what);
  const std::string_view text = reader_.take_text(length, what);
  spend(text.size());
  return std::string(text);
}

std::string Parser::read_name(std::string_view what) {
  const auto length = reader_.read<uint64_t>(what);
  reader_.require(length >= 1 && length <= kGgufMaxNameBytes,
                  "{}: expected a length of 1 to {} bytes, got {}", what, kGgufMaxNameBytes,
                  length);
  return std::string(reader_.take_text(length, what));
}

bool Parser::read_bool() {
  const auto value = reader_.read<uint8_t>("boolean");
  reader_.require(value <= 1, "boolean: expected 0 or 1, got {}", value);
  return value == 1;
}

void Parser::spend(uint64_t bytes) {
  reader_.require(bytes <= budget_, "metadata: expected at most {} bytes in all, got more",
                  kGgufMaxMetadataBytes);
  budget_ -= bytes;
}

void Parser::read_alignment() {
  alignment_ = part_.metadata.get_integer("general.alignment").value_or(kGgufDefaultAlignment);
  reader_.set_context({});
  reader_.require(is_gguf_alignment(alignment_),
                  "key 'general.alignment': expected a power of two from {} to {}, got {}",
                  kGgufMinAlignment, kGgufMaxAlignment, alignment_);
}

std::vector<int64_t> Parser::read_dims() {
  const auto rank = reader_.read<uint32_t>("number of dimensions");
  reader_.require(rank >= 1 && rank <= Shape::kMaxRank,
                  "number of dimensions: expected 1 to {}, got {}", Shape::kMaxRank, rank);
  std::vector<int64_t> dims = reader_.read_array<int64_t, int64_t>(rank, "dimensions");
  std::reverse(dims.begin(), dims.end());
  return dims;
}

void Parser::read_tensor() {
  reader_.set_context({});
  std::string name = read_name("tensor name");
  reader_.set_context(fmt::format("tensor '{}'", printable(name)));
  reader_.require(names_.insert(name).second, "expected once, got twice");
  const std::vector<int64_t> dims = read_dims();
  const auto smallest = std::min_element(dims.begin(), dims.end());
  reader_.require(*smallest >= 1, "dimensions: expected 1 to 2^63 - 1, got {}", format_dims(dims));

  const auto type = reader_.read<uint32_t>("type");
  const std::optional<DType> dtype = dtype_of_ggml_type(type);
  reader_.require(dtype.has_value(), "type: expected one that is supported, got {}",
                  ggml_type_name(type));
  reader_.require(dims.back() % block_elements(*dtype) == 0,
                  "row: expected a multiple of {} elements of {}, got {}", block_elements(*dtype),
                  spb::name(*dtype), dims.back());
  const std::optional<int64_t> bytes = tensor_bytes(*dtype, dims);
  const uint64_t file_bytes = file_.bytes().size();
  reader_.require(bytes.has_value() && static_cast<uint64_t>(*bytes) <= file_bytes,
                  "shape {} of {}: expected to fit in the file of {} bytes", format_dims(dims),
                  spb::name(*dtype), file_bytes);

  const auto offset = reader_.read<uint64_t>("data offset");
  reader_.require(offset <= file_bytes && offset % static_cast<uint64_t>(alignment_) == 0,
                  "data offset: expected a multiple of {} inside the file of {} bytes, got {}",
                  alignment_, file_bytes, offset);
  extents_.push_back({offset, offset + static_cast<uint64_t>(*bytes), part_.tensors.size()});
  types_.emplace_back(*dtype, Shape(dims));
  part_.tensors.push_back({std::move(name), {}, file_.path()});
}

void Parser::place_tensors() {
  reader_.set_context({});
  if (extents_.empty()) return;
  const uint64_t start = align_up(reader_.offset(), alignment_);
  const auto data = file_.bytes();
  for (const Extent& extent : extents_) {
    TensorEntry& entry = part_.tensors[extent.owner];
    check_data(start <= data.size() && extent.end <= data.size() - start,
               "{}: byte {}: tensor '{}': data: expected to end inside the file of {} bytes, got "
               "{} bytes (truncated file?)",
               file_.path(), start + extent.begin, printable(entry.name), data.size(),
               extent.end - extent.begin);
    const auto& [dtype, shape] = types_[extent.owner];
    entry.view = ConstTensorView(data.data() + start + extent.begin, dtype, shape);
  }
  if (const auto overlap = sort_and_find_overlap(extents_)) {
    const Extent& first = extents_[*overlap - 1];
    const Extent& second = extents_[*overlap];
    fail(ErrorKind::kData,
         "{}: byte {}: tensor '{}': data: expected after byte {} where '{}' ends, got an overlap",
         file_.path(), start + second.begin, printable(part_.tensors[second.owner].name),
         start + first.end, printable(part_.tensors[first.owner].name));
  }
}

}  // namespace

GgufPart parse_gguf(const MappedFile& file) { return Parser(file).parse(); }

}  // namespace spb::io
