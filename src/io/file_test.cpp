// Reader, MappedFile, AtomicFile and extents.
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "io/atomic_file.h"
#include "io/extents.h"
#include "io/mapped_file.h"
#include "io/reader.h"
#include "io/test_files.h"

namespace spb::io {
namespace {

TEST(Reader, NamesFileAndByteOfWhatIsWrong) {
  Bytes bytes;
  bytes.put<uint16_t>(0x1234).put(-1.5f).raw("ab\ncd");
  Reader reader(bytes.span(), "f.bin", 100);
  EXPECT_EQ(reader.read<uint16_t>("first"), 0x1234);
  EXPECT_EQ(reader.read<float>("second"), -1.5f);
  expect_error(ErrorKind::kData, {"f.bin: byte 102: third: expected 7, got 8"},
               [&] { reader.require(false, "third: expected {}, got {}", 7, 8); });
  EXPECT_EQ(reader.take_line("line"), "ab");
  EXPECT_EQ(reader.offset(), 109u);
  reader.set_context("tensor 't'");
  expect_error(ErrorKind::kData, {"f.bin: byte 109: tensor 't': size: expected 8 bytes, got 2"},
               [&] { reader.read<uint64_t>("size"); });
  expect_error(ErrorKind::kData, {"line: expected a line"}, [&] { reader.take_line("line"); });
  expect_error(ErrorKind::kData, {"got 2"}, [&] { reader.take(UINT64_MAX, "rest"); });
  expect_error(ErrorKind::kData, {"expected 4611686018427387905 elements of 4 bytes"},
               [&] { reader.read_array<uint32_t, int64_t>((uint64_t{1} << 62) + 1, "array"); });
  EXPECT_EQ(reader.take_text(2, "rest"), "cd");
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  const TemporaryFolder folder;
  expect_error(ErrorKind::kSystem, {"absent: open: No such file"},
               [&] { MappedFile::open(folder.file("absent")); });
  expect_error(ErrorKind::kData, {"expected a regular file, got a folder"},
               [&] { MappedFile::open(folder.path()); });
  expect_error(ErrorKind::kData, {"empty file"},
               [&] { MappedFile::open(folder.write("empty", "")); });
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  expect_error(ErrorKind::kData, {"a device, pipe or socket"},
               [&] { MappedFile::open(folder.file("pipe")); });
}

TEST(MappedFile, AdviceChangesNoByte) {
  const TemporaryFolder folder;
  std::string content(100'000, 'x');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i % 251);
  const auto mapped = MappedFile::open(folder.write("f", content));
  const auto copied = MappedFile::copy_of(bytes_of(content), "copy");
  for (const MappedFile* file : {mapped.get(), copied.get()}) {
    file->advise_sequential();
    for (const size_t begin : {0, 1, 4096, 5000, 99'999}) {
      const auto part = file->bytes().subspan(begin);
      file->will_need(part);
      file->drop(part);
    }
    file->drop(bytes_of(content));  // elsewhere
    EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(copied->bytes().data()) % 64, 0u);
}

TEST(AtomicFile, AppearsOnlyWhenCommitted) {
  const TemporaryFolder folder;
  const std::string path = folder.file("f");
  {
    AtomicFile file(path);
    file.write(bytes_of("gone"));
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  EXPECT_EQ(folder.count(), 0u);
  AtomicFile file(path);
  AtomicFile other(path);
  file.write(bytes_of("ab"));
  file.write_zeros(5000);
  EXPECT_EQ(file.position(), 5002);
  file.commit();
  EXPECT_EQ(read_text(path), "ab" + std::string(5000, '\0'));
  other.write(bytes_of("other"));
  other.commit();
  EXPECT_EQ(read_text(path), "other");
  EXPECT_EQ(folder.count(), 1u);
}

TEST(AtomicFile, WritesThroughALinkAndRefusesFolders) {
  const TemporaryFolder folder;
  folder.write("target", "old");
  std::filesystem::create_symlink("target", folder.file("link"));
  write_file(folder.file("link"), bytes_of("new"));
  EXPECT_TRUE(std::filesystem::is_symlink(folder.file("link")));
  EXPECT_EQ(read_text(folder.file("target")), "new");
  expect_error(ErrorKind::kUsage, {"got a folder"}, [&] { AtomicFile file(folder.path()); });
  expect_error(ErrorKind::kUsage, {"a device"}, [&] { AtomicFile file("/dev/null"); });
  expect_error(ErrorKind::kUsage, {"expected a name"}, [&] { AtomicFile file(""); });
  expect_error(ErrorKind::kSystem, {"f: create: No such file"},
               [&] { AtomicFile file(folder.file("absent/f")); });
}

TEST(AtomicFile, AFullDiskNamesFileAndBytesAndLeavesNothing) {
  const TemporaryFolder folder;
  rlimit old_limit = {};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {10'000, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_error(ErrorKind::kSystem, {"big: writing ", "bytes at byte ", "File too large"}, [&] {
    AtomicFile file(folder.file("big"));
    file.write_zeros(20'000);
  });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(folder.count(), 0u);
}

TEST(Extents, TensorBytesNeverOverflow) {
  const auto bytes = [](DType dtype, std::vector<int64_t> dims) {
    return tensor_bytes(dtype, dims);
  };
  EXPECT_EQ(bytes(DType::kF32, {2, 3}), 24);
  EXPECT_EQ(bytes(DType::kQ4_1, {3, 64}), 120);
  EXPECT_EQ(bytes(DType::kI64, {}), 8);
  EXPECT_EQ(bytes(DType::kI8, {INT64_MAX}), INT64_MAX);
  EXPECT_EQ(bytes(DType::kF16, {INT64_MAX}), std::nullopt);
  EXPECT_EQ(bytes(DType::kF32, {int64_t{1} << 32, int64_t{1} << 32}), std::nullopt);
  EXPECT_EQ(bytes(DType::kF32, {2, 0}), std::nullopt);
  EXPECT_EQ(bytes(DType::kF32, {2, -1}), std::nullopt);
  EXPECT_EQ(bytes(DType::kQ4_0, {64, 31}), std::nullopt);
  EXPECT_EQ(bytes(DType::kQ4_0, {}), std::nullopt);
}

TEST(Extents, OverlapIsFoundWhateverTheOrder) {
  std::vector<Extent> apart = {{8, 16, 0}, {0, 8, 1}, {20, 20, 2}};
  EXPECT_EQ(sort_and_find_overlap(apart), std::nullopt);
  std::vector<Extent> overlapping = {{8, 16, 0}, {30, 40, 1}, {0, 9, 2}};
  const auto found = sort_and_find_overlap(overlapping);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(overlapping[*found].owner, 0u);
}

}  // namespace
}  // namespace spb::io
