// Any bytes as a file of spike events: refused with spb::Error, or read to the last count.
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/error.h"
#include "view/spike_events.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    spb::view::SpikeEventReader reader(std::as_bytes(std::span(data, size)), "fuzz.events");
    volatile int64_t sum = 0;
    for (spb::view::SpikeEvents events; reader.next(events);) {
      for (const int32_t count : events.counts) sum = sum + count;
      sum = sum + static_cast<int64_t>(events.thresholds.size());
    }
  } catch (const spb::Error&) {
  }
  return 0;
}
