// GGUF files made by hand, right or wrong: counts and contents are not compared.
#pragma once

#include <initializer_list>

#include "io/gguf_format.h"
#include "io/test_files.h"

namespace spb::io {

class GgufBytes : public Bytes {
 public:
  GgufBytes(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    put(kGgufMagic).put(version).put(tensors).put(keys);
  }

  GgufBytes& name(std::string_view value) {
    put<uint64_t>(value.size()).raw(value);
    return *this;
  }
  GgufBytes& key(std::string_view key, GgufType type) {
    name(key).put(type);
    return *this;
  }
  template <typename T>
  GgufBytes& key(std::string_view key, GgufType type, T value) {
    name(key).put(type).put(value);
    return *this;
  }
  GgufBytes& text_key(std::string_view key, std::string_view value) {
    return this->key(key, GgufType::kString).name(value);
  }
  GgufBytes& array_key(std::string_view key, GgufType element, uint64_t count) {
    this->key(key, GgufType::kArray).put(element).put(count);
    return *this;
  }
  // Dimensions innermost first, as in the file.
  GgufBytes& tensor(std::string_view name, std::initializer_list<uint64_t> dims, uint32_t type,
                    uint64_t offset) {
    this->name(name).put(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) put(dim);
    put(type).put(offset);
    return *this;
  }
  // Aligned data of `bytes` bytes that count up.
  GgufBytes& data(size_t bytes, size_t alignment = 32) {
    pad_to(alignment);
    for (size_t i = 0; i < bytes; ++i) put(static_cast<uint8_t>(i));
    return *this;
  }
};

}  // namespace spb::io
