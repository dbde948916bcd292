#include "io/zip_archive.h"

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <utility>

#include "io/extents.h"
#include "io/reader.h"

namespace spb::io {
namespace {

constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr uint32_t kEntrySignature = 0x02014b50;
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint64_t kEndBytes = 22;
constexpr uint64_t kLocator64Bytes = 20;
constexpr uint64_t kEntryBytes = 46;
constexpr uint64_t kMaxCommentBytes = 65535;
constexpr uint64_t kMaxRecords = 1u << 20;
constexpr uint16_t kZip64Extra = 1;
constexpr uint16_t kEncryptedFlag = 1;

struct Directory {
  uint64_t records = 0;
  uint64_t bytes = 0;
  uint64_t offset = 0;
};

struct Entry {
  std::string name;
  uint64_t bytes = 0;
  uint64_t local_offset = 0;
};

class Archive {
 public:
  explicit Archive(const MappedFile& file) : file_(file), bytes_(file.bytes()) {}
  std::vector<ZipRecord> read();

 private:
  Reader reader_at(uint64_t offset) const {
    return Reader(bytes_.subspan(std::min<uint64_t>(offset, bytes_.size())), file_.path(), offset);
  }
  uint64_t find_end() const;
  Directory read_end(uint64_t end) const;
  Directory read_end64(uint64_t end) const;
  Entry read_entry(Reader& reader) const;
  static void apply_zip64(std::span<const std::byte> extra, std::string_view path,
                          uint64_t extra_offset, uint64_t& compressed, Entry& entry);
  ZipRecord locate(Entry entry, uint64_t limit) const;

  const MappedFile& file_;
  std::span<const std::byte> bytes_;
};

// The end record is followed by a comment only, whose length it states.
uint64_t Archive::find_end() const {
  const uint64_t size = bytes_.size();
  for (uint64_t comment = 0; comment <= kMaxCommentBytes && comment + kEndBytes <= size;
       ++comment) {
    Reader reader = reader_at(size - comment - kEndBytes);
    if (reader.read<uint32_t>("signature") != kEndSignature) continue;
    reader.take(kEndBytes - 6, "end record");
    if (reader.read<uint16_t>("comment length") == comment) return size - comment - kEndBytes;
  }
  fail(ErrorKind::kData,
       "{}: expected a zip archive (PyTorch 1.6 or newer), got no end record in {} bytes "
       "(truncated file?)",
       file_.path(), size);
}

Directory Archive::read_end64(uint64_t end) const {
  if (end < kLocator64Bytes) return {};
  Reader locator = reader_at(end - kLocator64Bytes);
  if (locator.read<uint32_t>("zip64 locator") != kLocator64Signature) return {};
  locator.take(4, "disk");
  const auto offset = locator.read<uint64_t>("zip64 end record offset");
  locator.require(offset < end, "zip64 end record offset: expected below {}, got {}", end, offset);
  Reader reader = reader_at(offset);
  const auto signature = reader.read<uint32_t>("zip64 end record");
  reader.require(signature == kEnd64Signature, "zip64 end record: expected {:#x}, got {:#x}",
                 kEnd64Signature, signature);
  reader.take(8 + 2 + 2 + 4 + 4 + 8, "zip64 end record");
  Directory directory;
  directory.records = reader.read<uint64_t>("record count");
  directory.bytes = reader.read<uint64_t>("directory size");
  directory.offset = reader.read<uint64_t>("directory offset");
  return directory;
}

Directory Archive::read_end(uint64_t end) const {
  Reader reader = reader_at(end);
  reader.take(4, "end record");
  const auto disk = reader.read<uint16_t>("disk");
  reader.require(disk == 0 || disk == UINT16_MAX, "disk: expected one file, got part {}", disk);
  reader.take(4, "disk");
  Directory directory;
  directory.records = reader.read<uint16_t>("record count");
  directory.bytes = reader.read<uint32_t>("directory size");
  directory.offset = reader.read<uint32_t>("directory offset");
  const bool saturated = directory.records == UINT16_MAX || directory.bytes == UINT32_MAX ||
                         directory.offset == UINT32_MAX;
  if (saturated) directory = read_end64(end);
  reader.require(directory.offset <= end && directory.bytes <= end - directory.offset,
                 "directory: expected before byte {}, got {} bytes at byte {}", end,
                 directory.bytes, directory.offset);
  const uint64_t limit = std::min(kMaxRecords, directory.bytes / kEntryBytes);
  reader.require(directory.records <= limit, "record count: expected at most {}, got {}", limit,
                 directory.records);
  return directory;
}

// 64-bit values stand in the extra field, in this order, for those that read as all ones.
void Archive::apply_zip64(std::span<const std::byte> extra, std::string_view path,
                          uint64_t extra_offset, uint64_t& compressed, Entry& entry) {
  Reader fields(extra, path, extra_offset);
  while (fields.remaining() >= 4) {
    const auto id = fields.read<uint16_t>("extra field");
    const auto length = fields.read<uint16_t>("extra field length");
    const uint64_t offset = fields.offset();
    Reader field(fields.take(length, "extra field"), path, offset);
    if (id != kZip64Extra) continue;
    for (uint64_t* value : {&entry.bytes, &compressed, &entry.local_offset}) {
      if (*value == UINT32_MAX) *value = field.read<uint64_t>("zip64 field");
    }
  }
}

Entry Archive::read_entry(Reader& reader) const {
  const auto signature = reader.read<uint32_t>("directory entry");
  reader.require(signature == kEntrySignature, "directory entry: expected {:#x}, got {:#x}",
                 kEntrySignature, signature);
  reader.take(4, "versions");
  const auto flags = reader.read<uint16_t>("flags");
  const auto method = reader.read<uint16_t>("method");
  reader.take(2 + 2 + 4, "time and checksum");
  Entry entry;
  uint64_t compressed = reader.read<uint32_t>("compressed size");
  entry.bytes = reader.read<uint32_t>("size");
  const auto name_bytes = reader.read<uint16_t>("name length");
  const auto extra_bytes = reader.read<uint16_t>("extra length");
  const auto comment_bytes = reader.read<uint16_t>("comment length");
  reader.take(2 + 2 + 4, "attributes");
  entry.local_offset = reader.read<uint32_t>("record offset");
  entry.name = std::string(reader.take_text(name_bytes, "name"));
  const std::string shown = printable(entry.name);
  reader.require((flags & kEncryptedFlag) == 0, "record '{}': expected no encryption", shown);
  reader.require(method == 0, "record '{}': expected stored data (method 0), got method {}", shown,
                 method);
  const uint64_t extra_offset = reader.offset();
  apply_zip64(reader.take(extra_bytes, "extra field"), file_.path(), extra_offset, compressed,
              entry);
  reader.require(compressed == entry.bytes, "record '{}': size: expected {} stored bytes, got {}",
                 shown, entry.bytes, compressed);
  reader.take(comment_bytes, "comment");
  return entry;
}

ZipRecord Archive::locate(Entry entry, uint64_t limit) const {
  Reader reader = reader_at(entry.local_offset);
  reader.set_context(fmt::format("record '{}'", printable(entry.name)));
  const auto signature = reader.read<uint32_t>("local header");
  reader.require(signature == kLocalSignature, "local header: expected {:#x}, got {:#x}",
                 kLocalSignature, signature);
  reader.take(22, "local header");
  const auto name_bytes = reader.read<uint16_t>("name length");
  const auto extra_bytes = reader.read<uint16_t>("extra length");
  const std::string_view name = reader.take_text(name_bytes, "name");
  reader.require(name == entry.name, "name: expected as in the directory, got '{}'",
                 printable(name));
  reader.take(extra_bytes, "extra field");
  const uint64_t offset = reader.offset();
  reader.require(offset <= limit && entry.bytes <= limit - offset,
                 "data: expected to end before the directory at byte {}, got {} bytes (truncated "
                 "file?)",
                 limit, entry.bytes);
  return {std::move(entry.name), reader.take(entry.bytes, "data"), offset};
}

std::vector<ZipRecord> Archive::read() {
  const Directory directory = read_end(find_end());
  Reader reader = reader_at(directory.offset);
  std::vector<ZipRecord> records;
  std::vector<Extent> extents;
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < directory.records; ++i) {
    Entry entry = read_entry(reader);
    reader.require(names.insert(entry.name).second, "record '{}': expected once, got twice",
                   printable(entry.name));
    const uint64_t begin = entry.local_offset;
    records.push_back(locate(std::move(entry), directory.offset));
    const ZipRecord& record = records.back();
    extents.push_back({begin, record.offset + record.data.size(), i});
  }
  if (const auto overlap = sort_and_find_overlap(extents)) {
    fail(ErrorKind::kData, "{}: byte {}: record '{}': expected its own bytes, got those of '{}'",
         file_.path(), extents[*overlap].begin, printable(records[extents[*overlap].owner].name),
         printable(records[extents[*overlap - 1].owner].name));
  }
  return records;
}

}  // namespace

std::vector<ZipRecord> read_zip(const MappedFile& file) { return Archive(file).read(); }

}  // namespace spb::io
