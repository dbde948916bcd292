#include "view/spike_events.h"

#include <cmath>
#include <limits>

#include "core/error.h"

namespace spb::view {
namespace {

constexpr std::string_view kMagic = "SPBEVENT";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kBlockTag = 1;
constexpr uint32_t kEndTag = 0;
constexpr int32_t kLargestNibble = 7;
constexpr uint8_t kEscape = 8;
constexpr uint32_t kLongestText = 4096;  // of names

template <typename T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void append_size(std::string& bytes, int64_t value, std::string_view what) {
  check(value >= 0 && value <= std::numeric_limits<int32_t>::max(),
        "spike events: {}: expected 0 to 2^31 - 1, got {}", what, value);
  append(bytes, static_cast<uint32_t>(value));
}

void append_text(std::string& bytes, std::string_view text) {
  const std::string_view kept = text.substr(0, kLongestText);
  append(bytes, static_cast<uint32_t>(kept.size()));
  bytes += kept;
}

void append_large(std::string& bytes, int64_t count) {
  auto rest = static_cast<uint64_t>(count >= 0 ? 2 * count : -2 * count - 1);
  for (; rest >= 128; rest >>= 7) bytes += static_cast<char>(rest | 128);
  bytes += static_cast<char>(rest);
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// The counts of a block, two to a byte, and the large ones behind.
class CountPacker {
 public:
  explicit CountPacker(std::string& bytes) : bytes_(bytes) {}

  void add(int32_t count) {
    uint8_t nibble = kEscape;
    if (count >= -kLargestNibble && count <= kLargestNibble) {
      nibble = static_cast<uint8_t>(count) & 15;
    } else {
      append_large(large_, count);
    }
    if (half_) {
      bytes_.back() = static_cast<char>(static_cast<uint8_t>(bytes_.back()) | nibble << 4);
    } else {
      bytes_ += static_cast<char>(nibble);
    }
    half_ = !half_;
  }

  void finish() {
    append_size(bytes_, std::ssize(large_), "bytes of large counts");
    bytes_ += large_;
  }

 private:
  std::string& bytes_;
  std::string large_;
  bool half_ = false;
};

}  // namespace

SpikeEventWriter::SpikeEventWriter(const std::string& path, std::string_view model, double k)
    : file_(path) {
  bytes_ = kMagic;
  append(bytes_, kVersion);
  append(bytes_, k);
  append_text(bytes_, model);
  file_.write(bytes_of(bytes_));
}

void SpikeEventWriter::write(const SpikeBlock& block, const spike::SpikeCounts& counts) {
  const int64_t rows = counts.core.shape()[0];
  const int64_t channels = counts.core.shape()[1];
  bytes_.clear();
  append(bytes_, kBlockTag);
  append_size(bytes_, block.layer, "layer");
  append_text(bytes_, block.site);
  append_size(bytes_, rows, "rows");
  append_size(bytes_, channels, "channels");
  append_size(bytes_, block.rows_per_token, "rows per token");
  append(bytes_, static_cast<uint64_t>(block.first_token));
  append(bytes_, static_cast<uint64_t>(block.position));
  bytes_.append(reinterpret_cast<const char*>(counts.thresholds.as<float>()),
                static_cast<size_t>(rows) * sizeof(float));
  CountPacker packer(bytes_);
  auto burst = counts.bursts.begin();
  for (int64_t m = 0; m < rows; ++m) {
    const int8_t* core = counts.core.row_as<int8_t>(m);
    for (int64_t c = 0; c < channels; ++c) {
      int32_t count = core[c];
      if (burst != counts.bursts.end() && burst->row == m && burst->channel == c) {
        count += burst->excess;
        ++burst;
      }
      packer.add(count);
    }
  }
  packer.finish();
  file_.write(bytes_of(bytes_));
  ++blocks_;
}

void SpikeEventWriter::finish() {
  bytes_.clear();
  append(bytes_, kEndTag);
  append(bytes_, blocks_);
  file_.write(bytes_of(bytes_));
  file_.commit();
}

SpikeEventReader::SpikeEventReader(const std::string& path)
    : SpikeEventReader(io::MappedFile::open(path)) {}

SpikeEventReader::SpikeEventReader(std::span<const std::byte> bytes, std::string name)
    : SpikeEventReader(io::MappedFile::copy_of(bytes, std::move(name))) {}

SpikeEventReader::SpikeEventReader(std::unique_ptr<io::MappedFile> file)
    : file_(std::move(file)), reader_(file_->bytes(), file_->path()) {
  read_header();
}

void SpikeEventReader::read_header() {
  reader_.set_context("header");
  const std::string_view magic = reader_.take_text(kMagic.size(), "magic");
  reader_.require(magic == kMagic, "magic: expected '{}', got '{}'", kMagic, printable(magic));
  const auto version = reader_.read<uint32_t>("version");
  reader_.require(version == kVersion, "version: expected {}, got {}", kVersion, version);
  k_ = reader_.read<double>("k");
  reader_.require(std::isfinite(k_) && k_ > 0, "k: expected a number above 0, got {}", k_);
  const auto length = reader_.read<uint32_t>("length of the model's name");
  reader_.require(length <= kLongestText, "length of the model's name: expected at most {}, got {}",
                  kLongestText, length);
  model_ = reader_.take_text(length, "the model's name");
}

bool SpikeEventReader::next(SpikeEvents& events) {
  if (ended_) return false;
  reader_.set_context(fmt::format("block {}", blocks_));
  const auto tag = reader_.read<uint32_t>("tag");
  reader_.require(tag == kBlockTag || tag == kEndTag, "tag: expected 0 or 1, got {}", tag);
  if (tag == kEndTag) {
    read_end();
    return false;
  }
  SpikeBlock& block = events.block;
  block.layer = reader_.read<uint32_t>("layer");
  const auto length = reader_.read<uint32_t>("length of the site's name");
  reader_.require(length <= kLongestText, "length of the site's name: expected at most {}, got {}",
                  kLongestText, length);
  block.site = reader_.take_text(length, "the site's name");
  events.rows = reader_.read<uint32_t>("rows");
  events.channels = reader_.read<uint32_t>("channels");
  block.rows_per_token = reader_.read<uint32_t>("rows per token");
  reader_.require(block.rows_per_token > 0 && events.rows % block.rows_per_token == 0,
                  "rows per token: expected a divisor of {} rows, got {}", events.rows,
                  block.rows_per_token);
  constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max() / 2);
  const auto first = reader_.read<uint64_t>("first token");
  reader_.require(first <= kMost, "first token: expected at most {}, got {}", kMost, first);
  const auto position = reader_.read<uint64_t>("position");
  reader_.require(position <= first, "position: expected at most {}, got {}", first, position);
  block.first_token = static_cast<int64_t>(first);
  block.position = static_cast<int64_t>(position);
  events.thresholds =
      reader_.read_array<float, float>(static_cast<uint64_t>(events.rows), "thresholds");
  read_counts(events);
  ++blocks_;
  return true;
}

// Both sizes are below 2^32, so their product fits in 64 bits without a sign.
void SpikeEventReader::read_counts(SpikeEvents& events) {
  const uint64_t entries =
      static_cast<uint64_t>(events.rows) * static_cast<uint64_t>(events.channels);
  const auto nibbles = reader_.take(entries / 2 + entries % 2, "counts");
  events.counts.resize(static_cast<size_t>(entries));
  const auto large_bytes = reader_.read<uint32_t>("bytes of large counts");
  io::Reader large(reader_.take(large_bytes, "large counts"), file_->path(),
                   reader_.offset() - large_bytes);
  large.set_context(fmt::format("block {}", blocks_));
  const auto read_large = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = large.read<uint8_t>("a large count");
      large.require(shift <= 28, "a large count: expected at most 5 bytes");
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) break;
    }
    const auto size = static_cast<int64_t>((value + 1) / 2);
    large.require(size <= spike::kMaxCount, "a large count: expected at most {}, got {}",
                  spike::kMaxCount, size);
    return static_cast<int32_t>(value % 2 == 0 ? size : -size);
  };
  for (size_t i = 0; i < events.counts.size(); ++i) {
    const int nibble = static_cast<int>(nibbles[i / 2]) >> (i % 2 * 4) & 15;
    events.counts[i] = nibble == kEscape ? read_large() : nibble < 8 ? nibble : nibble - 16;
  }
  large.require(large.remaining() == 0, "large counts: expected {} bytes fewer", large.remaining());
}

void SpikeEventReader::read_end() {
  const auto blocks = reader_.read<uint64_t>("number of blocks");
  reader_.require(blocks == blocks_, "number of blocks: expected {}, got {}", blocks_, blocks);
  reader_.require(reader_.remaining() == 0, "end: expected no more bytes, got {}",
                  reader_.remaining());
  ended_ = true;
}

}  // namespace spb::view
