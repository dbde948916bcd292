// Any bytes as a GGUF file: refused with spb::Error, or readable to the last byte.
#include "io/fuzz_source.h"
#include "io/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return spb::io::fuzz_source(data, size, [](std::span<const std::byte> bytes) {
    return spb::io::open_gguf_bytes(bytes, "fuzz.gguf");
  });
}
