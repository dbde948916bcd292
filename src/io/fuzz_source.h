// What the fuzzers of this folder share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/error.h"
#include "io/tensor_source.h"

namespace spb::io {

// Opens the bytes and reads every byte of every tensor through its view.
template <typename Open>
int fuzz_source(const uint8_t* data, size_t size, const Open& open) {
  try {
    const std::unique_ptr<TensorSource> source = open(std::as_bytes(std::span(data, size)));
    volatile uint8_t sink = 0;
    int64_t budget = 1 << 20;  // many views may share the same bytes
    for (const TensorEntry& tensor : source->tensors()) {
      const int64_t bytes = tensor.view.bytes();
      if (bytes == 0) continue;
      sink = std::to_integer<uint8_t>(tensor.view.data()[bytes - 1]);
      for (int64_t i = 0; i < bytes && budget > 0; ++i, --budget) {
        sink = std::to_integer<uint8_t>(tensor.view.data()[i]);
      }
    }
    static_cast<void>(sink);
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace spb::io
