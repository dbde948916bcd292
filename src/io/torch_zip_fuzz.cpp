// Any bytes as a PyTorch checkpoint, and any bytes as the pickle of a sound archive: refused with
// spb::Error, or readable to the last byte.
#include "io/checkpoint.h"
#include "io/fuzz_source.h"
#include "io/pickle.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    spb::io::read_pickled_tensors(std::as_bytes(std::span(data, size)), "fuzz.pkl", 0);
  } catch (const spb::Error&) {
  }
  return spb::io::fuzz_source(data, size, [](std::span<const std::byte> bytes) {
    return spb::io::open_torch_zip_bytes(bytes, "fuzz.bin");
  });
}
