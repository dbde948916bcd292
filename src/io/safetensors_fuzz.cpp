// Any bytes as a safetensors file: refused with spb::Error, or readable to the last byte.
#include "io/checkpoint.h"
#include "io/fuzz_source.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return spb::io::fuzz_source(data, size, [](std::span<const std::byte> bytes) {
    return spb::io::open_safetensors_bytes(bytes, "fuzz.safetensors");
  });
}
