// Spike events: a file of all spike counts of a run, for tools of others.
//
// Little-endian, nothing padded, in this order:
//   header   "SPBEVENT", version u32 = 1, k f64, model: length u32 and UTF-8 bytes
//   blocks   one for each site and call:
//              tag u32 = 1, layer u32, site: length u32 and bytes
//              rows u32, channels u32, rows per token u32
//              first token u64 (place in the text), position u64 (of it in its window)
//              thresholds f32 [rows]
//              nibbles u8 [(rows * channels + 1) / 2]: two counts each, the earlier one in the low
//                bits; -7 .. 7 as two's complement, 8: the count is the next of the large ones
//              bytes of large counts u32, then those counts: zigzag (c >= 0 ? 2 c : -2 c - 1) as
//                base-128 numbers, low seven bits first, high bit set on all bytes but the last
//   end      tag u32 = 0, number of blocks u64
// Row r belongs to token r / rows_per_token of the block; threshold times count is the activation.
//
// Errors: system errors of the file; kData with the byte for anything that is not as above.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "io/reader.h"
#include "spike/threshold/threshold.h"

namespace spb::view {

// Where the rows of a block come from.
struct SpikeBlock {
  int64_t layer = 0;
  std::string site;
  int64_t rows_per_token = 1;
  int64_t first_token = 0;
  int64_t position = 0;
};

class SpikeEventWriter {
 public:
  SpikeEventWriter(const std::string& path, std::string_view model, double k);

  void write(const SpikeBlock& block, const spike::SpikeCounts& counts);
  void finish();  // the file does not exist before

 private:
  io::AtomicFile file_;
  std::string bytes_;  // of the block being written
  uint64_t blocks_ = 0;
};

struct SpikeEvents {
  SpikeBlock block;
  int64_t rows = 0;
  int64_t channels = 0;
  std::vector<float> thresholds;  // [rows]
  std::vector<int32_t> counts;    // [rows, channels]
};

class SpikeEventReader {
 public:
  explicit SpikeEventReader(const std::string& path);
  // Of bytes in memory; `name` is for messages.
  SpikeEventReader(std::span<const std::byte> bytes, std::string name);

  const std::string& model() const { return model_; }
  double k() const { return k_; }

  // The next block; false at the end of a complete file.
  bool next(SpikeEvents& events);

 private:
  explicit SpikeEventReader(std::unique_ptr<io::MappedFile> file);
  void read_header();
  void read_end();
  void read_counts(SpikeEvents& events);

  std::unique_ptr<io::MappedFile> file_;
  io::Reader reader_;
  std::string model_;
  double k_ = 0;
  uint64_t blocks_ = 0;
  bool ended_ = false;
};

}  // namespace spb::view
