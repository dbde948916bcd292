// Zip archives and pickles made by hand, right or wrong.
#pragma once

#include <utility>
#include <vector>

#include "io/test_files.h"

namespace spb::io {

struct TestRecord {
  std::string name;
  std::string data;
  uint16_t method = 0;
  uint16_t flags = 0;
};

// A stored archive; `zip64` writes every size and offset in the 64-bit form.
inline std::string zip_bytes(const std::vector<TestRecord>& records, bool zip64 = false,
                             const std::string& comment = "") {
  Bytes file;
  Bytes directory;
  for (const TestRecord& record : records) {
    const uint64_t offset = file.text.size();
    const auto size = static_cast<uint32_t>(record.data.size());
    const auto name_bytes = static_cast<uint16_t>(record.name.size());
    file.put<uint32_t>(0x04034b50).put<uint16_t>(20).put(record.flags).put(record.method);
    file.put<uint64_t>(0).put(size).put(size).put(name_bytes).put<uint16_t>(3);
    file.raw(record.name).raw("FB1").raw(record.data);
    directory.put<uint32_t>(0x02014b50).put<uint32_t>(0).put(record.flags).put(record.method);
    directory.put<uint64_t>(0).put(zip64 ? UINT32_MAX : size).put(zip64 ? UINT32_MAX : size);
    directory.put(name_bytes).put<uint16_t>(zip64 ? 28 : 0).put<uint16_t>(0).put<uint64_t>(0);
    directory.put(zip64 ? UINT32_MAX : static_cast<uint32_t>(offset)).raw(record.name);
    if (zip64) {
      directory.put<uint16_t>(1).put<uint16_t>(24);
      directory.put<uint64_t>(size).put<uint64_t>(size).put(offset);
    }
  }
  const uint64_t start = file.text.size();
  const uint64_t bytes = directory.text.size();
  const uint64_t count = records.size();
  file.raw(directory.text);
  if (zip64) {
    const uint64_t end = file.text.size();
    file.put<uint32_t>(0x06064b50).put<uint64_t>(44).put<uint32_t>(0).put<uint64_t>(0);
    file.put(count).put(count).put(bytes).put(start);
    file.put<uint32_t>(0x07064b50).put<uint32_t>(0).put(end).put<uint32_t>(1);
  }
  file.put<uint32_t>(0x06054b50).put<uint32_t>(0);
  file.put<uint16_t>(zip64 ? UINT16_MAX : static_cast<uint16_t>(count));
  file.put<uint16_t>(zip64 ? UINT16_MAX : static_cast<uint16_t>(count));
  file.put(zip64 ? UINT32_MAX : static_cast<uint32_t>(bytes));
  file.put(zip64 ? UINT32_MAX : static_cast<uint32_t>(start));
  file.put(static_cast<uint16_t>(comment.size())).raw(comment);
  return file.text;
}

// Opcodes, chained: PickleBytes().begin().text("name")...
class PickleBytes : public Bytes {
 public:
  PickleBytes& op(std::string_view opcodes) {
    raw(opcodes);
    return *this;
  }
  PickleBytes& string(std::string_view value) {
    raw("X").put(static_cast<uint32_t>(value.size())).raw(value);
    return *this;
  }
  PickleBytes& integer(int64_t value) {
    raw("\x8a\x08").put(value);
    return *this;
  }
  PickleBytes& global(std::string_view module, std::string_view name) {
    return op("c").op(module).op("\n").op(name).op("\n");
  }
  PickleBytes& integers(const std::vector<int64_t>& values) {
    op("(");
    for (const int64_t value : values) integer(value);
    return op("t");
  }
  PickleBytes& storage(std::string_view type, std::string_view key, int64_t elements) {
    op("(").string("storage").global("torch", type).string(key).string("cpu").integer(elements);
    return op("tQ");
  }
  struct Rebuild {
    std::string_view type = "FloatStorage";
    std::string_view key = "0";
    int64_t elements = 6;
    int64_t offset = 0;
    std::vector<int64_t> dims = {2, 3};
    std::vector<int64_t> strides = {3, 1};
  };
  PickleBytes& tensor(const Rebuild& t) {
    global("torch._utils", "_rebuild_tensor_v2").op("(").storage(t.type, t.key, t.elements);
    integer(t.offset).integers(t.dims).integers(t.strides).op("\x89");
    return global("collections", "OrderedDict").op(")RtR");
  }
};

// A checkpoint of this pickle and of one storage "0" of 24 bytes that count up.
inline std::string checkpoint_bytes(const std::string& pickle, bool zip64 = false) {
  std::string storage;
  for (char i = 0; i < 24; ++i) storage += i;
  return zip_bytes({{"a/data.pkl", pickle}, {"a/byteorder", "little"}, {"a/data/0", storage}},
                   zip64);
}

}  // namespace spb::io
