#include <cmath>
#include <limits>

#include "core/rng.h"
#include "io/gguf.h"
#include "io/gguf_test_bytes.h"

namespace spb::io {
namespace {

GgufTensorPlan plan(std::string name, DType dtype, Shape shape, uint8_t value = 0x5a) {
  return {std::move(name), dtype, shape,
          [value](std::span<std::byte> out) { std::memset(out.data(), value, out.size()); }};
}

// The type number that follows a key in the bytes of a file.
GgufType written_type(const std::string& file, const std::string& key, size_t skip = 0) {
  uint32_t type = 0;
  std::memcpy(&type, file.data() + file.find(key) + key.size() + skip, sizeof(type));
  return static_cast<GgufType>(type);
}
GgufType written_element_type(const std::string& file, const std::string& key) {
  return written_type(file, key, sizeof(uint32_t));
}

TEST(GgufWriter, ValuesSurviveInTheTypesOtherReadersExpect) {
  const TemporaryFolder folder;
  const std::string path = folder.file("m.gguf");
  GgufMetadata metadata;
  metadata.set("k.count", int64_t{7});
  metadata.set("k.negative", int64_t{-7});
  metadata.set("k.wide", int64_t{1} << 32);
  metadata.set("k.low", std::numeric_limits<int64_t>::min());
  metadata.set("k.top", UINT64_MAX);
  metadata.set("k.unsigned", uint64_t{9});
  metadata.set("k.float", 1e-6f * 1.0);
  metadata.set("k.infinite", -HUGE_VAL);
  metadata.set("k.double", 1e300);
  metadata.set("k.flag", false);
  metadata.set("k.text", std::string("x\0y", 3));
  metadata.set("k.ids", GgufArray(std::vector<int64_t>{3, -1}));
  metadata.set("k.longs", GgufArray(std::vector<int64_t>{3, int64_t{1} << 31}));
  metadata.set("k.scores", GgufArray(std::vector<double>{0.5, -1.0}));
  metadata.set("k.doubles", GgufArray(std::vector<double>{0.5, 1e300}));
  metadata.set("k.flags", GgufArray(std::vector<bool>{true, false, true}));
  metadata.set("k.texts", GgufArray(std::vector<std::string>{"", "b"}));
  metadata.set("k.empty", GgufArray(std::vector<int64_t>{}));
  write_gguf(path, metadata, {});

  const auto file = GgufFile::open(path);
  ASSERT_EQ(file->metadata().entries().size(), metadata.entries().size());
  for (size_t i = 0; i < metadata.entries().size(); ++i) {
    const GgufEntry& entry = file->metadata().entries()[i];
    EXPECT_EQ(entry.key, metadata.entries()[i].key);
    if (entry.key == "k.unsigned") {
      EXPECT_EQ(std::get<int64_t>(entry.value), 9);
    } else {
      EXPECT_EQ(entry.value, metadata.entries()[i].value) << entry.key;
    }
  }
  const std::string bytes = read_text(path);
  EXPECT_EQ(written_type(bytes, "k.count"), GgufType::kU32);
  EXPECT_EQ(written_type(bytes, "k.negative"), GgufType::kI32);
  EXPECT_EQ(written_type(bytes, "k.wide"), GgufType::kU64);
  EXPECT_EQ(written_type(bytes, "k.low"), GgufType::kI64);
  EXPECT_EQ(written_type(bytes, "k.top"), GgufType::kU64);
  EXPECT_EQ(written_type(bytes, "k.float"), GgufType::kF32);
  EXPECT_EQ(written_type(bytes, "k.infinite"), GgufType::kF32);
  EXPECT_EQ(written_type(bytes, "k.double"), GgufType::kF64);
  EXPECT_EQ(written_element_type(bytes, "k.ids"), GgufType::kI32);
  EXPECT_EQ(written_element_type(bytes, "k.longs"), GgufType::kI64);
  EXPECT_EQ(written_element_type(bytes, "k.scores"), GgufType::kF32);
  EXPECT_EQ(written_element_type(bytes, "k.doubles"), GgufType::kF64);
  EXPECT_EQ(written_element_type(bytes, "k.empty"), GgufType::kI32);
}

TEST(GgufWriter, TensorsOfEveryDTypeRoundTrip) {
  const TemporaryFolder folder;
  Rng rng(1);
  std::vector<GgufTensorPlan> tensors;
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    const int64_t row = block_elements(dtype) * (1 + rng.below(3));
    const Shape shapes[] = {{row}, {3, row}, {2, 3, row}, {1, 2, 1, row}};
    tensors.push_back(plan(fmt::format("t{}", i), dtype, shapes[i % 4], static_cast<uint8_t>(i)));
  }
  int64_t last_done = 0;
  int64_t last_total = 0;
  write_gguf(folder.file("m.gguf"), {}, tensors, [&](int64_t done, int64_t total) {
    EXPECT_GT(done, last_done);
    last_done = done;
    last_total = total;
  });
  const auto file = GgufFile::open(folder.file("m.gguf"));
  ASSERT_EQ(file->tensors().size(), tensors.size());
  int64_t bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorEntry& entry = file->tensors()[i];
    EXPECT_EQ(entry.name, tensors[i].name);
    EXPECT_EQ(entry.view.dtype(), tensors[i].dtype);
    EXPECT_EQ(entry.view.shape(), tensors[i].shape);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(entry.view.data()) % 32, 0u);
    for (int64_t b = 0; b < entry.view.bytes(); ++b) {
      ASSERT_EQ(std::to_integer<size_t>(entry.view.data()[b]), i);
    }
    bytes += entry.view.bytes();
  }
  EXPECT_EQ(last_done, bytes);
  EXPECT_EQ(last_total, bytes);
}

TEST(GgufWriter, KeepsTheAlignmentOfTheMetadataAndLeavesSplitKeysOut) {
  const TemporaryFolder folder;
  GgufMetadata metadata;
  metadata.set("general.alignment", int64_t{4096});
  metadata.set("split.count", int64_t{2});
  metadata.set("split.no", int64_t{0});
  const GgufTensorPlan tensors[] = {plan("a", DType::kF32, {3}), plan("b", DType::kF32, {3})};
  write_gguf(folder.file("m.gguf"), metadata, tensors);
  const auto file = GgufFile::open(folder.file("m.gguf"));
  EXPECT_EQ(file->metadata().find("split.count"), nullptr);
  EXPECT_EQ(file->at("b").view.data() - file->at("a").view.data(), 4096);
}

TEST(GgufWriter, SettingAKeyAgainReplacesItsValue) {
  GgufMetadata metadata;
  metadata.set("a", int64_t{1});
  metadata.set("b", int64_t{2});
  metadata.set("a", std::string("x"));
  ASSERT_EQ(metadata.entries().size(), 2u);
  EXPECT_EQ(metadata.entries()[0].key, "a");
  EXPECT_EQ(metadata.get_string("a"), "x");
  const GgufMetadata copy = metadata;
  EXPECT_EQ(copy.get_integer("b"), 2);
}

TEST(GgufWriter, RefusesWrongPlansBeforeItTouchesTheFile) {
  const TemporaryFolder folder;
  const auto refuse = [&](std::vector<GgufTensorPlan> tensors, std::string_view part) {
    expect_error(ErrorKind::kUsage, {"m.gguf", part},
                 [&] { write_gguf(folder.file("m.gguf"), {}, tensors); });
  };
  refuse({plan("", DType::kF32, {1})}, "name: expected 1 to");
  refuse({plan("a", DType::kF32, {1}), plan("a", DType::kF32, {1})}, "expected once, got twice");
  refuse({plan("a", DType::kF32, {2, 0})}, "got [2, 0]");
  refuse({plan("a", DType::kF32, Shape{})}, "got []");
  refuse({plan("a", DType::kQ4_0, {3, 48})}, "whole blocks of 32 q4_0");
  refuse({plan("a", DType::kF32, {int64_t{1} << 62})}, "got [4611686018427387904]");
  refuse({{"a", DType::kF32, {1}, {}}}, "expected a source of data");
  GgufMetadata odd;
  odd.set("general.alignment", int64_t{24});
  expect_error(ErrorKind::kUsage, {"power of two"},
               [&] { write_gguf(folder.file("m.gguf"), odd, {}); });
  EXPECT_EQ(folder.count(), 0u);
}

TEST(GgufWriter, AFailureLeavesTheOldFileAndNoOther) {
  const TemporaryFolder folder;
  const std::string path = folder.write("m.gguf", "old");
  GgufTensorPlan broken = plan("a", DType::kF32, {1});
  broken.fill = [](std::span<std::byte>) { fail(ErrorKind::kData, "source: broken"); };
  expect_error(ErrorKind::kData, {"source: broken"}, [&] { write_gguf(path, {}, {&broken, 1}); });
  EXPECT_EQ(read_text(path), "old");
  EXPECT_EQ(folder.count(), 1u);
}

}  // namespace
}  // namespace spb::io
