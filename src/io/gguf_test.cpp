#include "io/gguf.h"

#include "core/half.h"
#include "io/gguf_test_bytes.h"

namespace spb::io {
namespace {

constexpr uint32_t kF32 = 0;

std::unique_ptr<GgufFile> open(const Bytes& bytes) {
  return open_gguf_bytes(bytes.span(), "x.gguf");
}

void expect_refused(const Bytes& bytes, std::initializer_list<std::string_view> parts) {
  expect_error(ErrorKind::kData, parts, [&] { open(bytes); });
}

GgufBytes every_type() {
  GgufBytes file(2, 16);
  file.key("u8", GgufType::kU8, uint8_t{200}).key("i8", GgufType::kI8, int8_t{-3});
  file.key("u16", GgufType::kU16, uint16_t{65000}).key("i16", GgufType::kI16, int16_t{-300});
  file.key("u32", GgufType::kU32, uint32_t{4'000'000'000});
  file.key("i32", GgufType::kI32, int32_t{-70000}).key("f32", GgufType::kF32, 0.5f);
  file.key("u64", GgufType::kU64, uint64_t{1} << 63).key("i64", GgufType::kI64, int64_t{-1} << 40);
  file.key("f64", GgufType::kF64, 1e300).key("bool", GgufType::kBool, uint8_t{1});
  file.text_key("text", "a\nb");
  file.array_key("texts", GgufType::kString, 2).name("p").name("");
  file.array_key("numbers", GgufType::kF32, 2).put(1.5f).put(-2.0f);
  file.array_key("small", GgufType::kI8, 3).put<int8_t>(-1).put<int8_t>(0).put<int8_t>(1);
  file.array_key("flags", GgufType::kBool, 2).put<uint8_t>(0).put<uint8_t>(1);
  file.tensor("matrix", {3, 2}, kF32, 0).tensor("vector", {4}, 24, 32);
  return file.data(36);
}

TEST(Gguf, ReadsEveryMetadataType) {
  for (const uint32_t version : {2u, 3u}) {
    GgufBytes bytes = every_type();
    bytes.text[4] = static_cast<char>(version);
    const auto file = open(bytes);
    const GgufMetadata& m = file->metadata();
    EXPECT_EQ(m.entries().size(), 16u);
    EXPECT_EQ(m.get_integer("u8"), 200);
    EXPECT_EQ(m.get_integer("i8"), -3);
    EXPECT_EQ(m.get_integer("u16"), 65000);
    EXPECT_EQ(m.get_integer("i16"), -300);
    EXPECT_EQ(m.get_integer("u32"), 4'000'000'000);
    EXPECT_EQ(m.get_integer("i32"), -70000);
    EXPECT_EQ(m.get_integer("i64"), int64_t{-1} << 40);
    EXPECT_EQ(std::get<uint64_t>(*m.find("u64")), uint64_t{1} << 63);
    EXPECT_EQ(m.get_number("f32"), 0.5);
    EXPECT_EQ(m.get_number("f64"), 1e300);
    EXPECT_EQ(m.get_number("u8"), 200.0);
    EXPECT_EQ(m.get_bool("bool"), true);
    EXPECT_EQ(m.get_string("text"), "a\nb");
    EXPECT_EQ(*m.get_strings("texts"), (std::vector<std::string>{"p", ""}));
    EXPECT_EQ(*m.get_numbers("numbers"), (std::vector<double>{1.5, -2.0}));
    EXPECT_EQ(*m.get_integers("small"), (std::vector<int64_t>{-1, 0, 1}));
    EXPECT_EQ(std::get<std::vector<bool>>(std::get<GgufArray>(*m.find("flags"))),
              (std::vector<bool>{false, true}));
    EXPECT_EQ(m.get_integer("absent"), std::nullopt);
    EXPECT_EQ(m.get_strings("absent"), nullptr);
  }
}

TEST(Gguf, ShapesAreOutermostFirstAndViewsPointIntoTheFile) {
  const auto file = open(every_type());
  ASSERT_EQ(file->tensors().size(), 2u);
  const TensorEntry& matrix = file->at("matrix");
  EXPECT_EQ(matrix.view.shape(), (Shape{2, 3}));
  EXPECT_EQ(matrix.view.dtype(), DType::kF32);
  EXPECT_EQ(std::to_integer<int>(matrix.view.data()[23]), 23);
  const TensorEntry& vector = file->at("vector");
  EXPECT_EQ(vector.view.dtype(), DType::kI8);
  EXPECT_EQ(*vector.view.as<int8_t>(), 32);
  EXPECT_EQ(vector.file, "x.gguf");
  EXPECT_EQ(file->find("absent"), nullptr);
  expect_error(ErrorKind::kData, {"x.gguf", "'absent'"}, [&] { file->at("absent"); });
}

TEST(Gguf, WrongTypeOfAKeyIsNamed) {
  const auto file = open(every_type());
  const GgufMetadata& m = file->metadata();
  using Getter = std::function<void()>;
  const std::vector<std::pair<std::string_view, Getter>> wrong = {
      {"'text': expected an integer, got a string", [&] { m.get_integer("text"); }},
      {"'u64': expected an integer, got an integer above", [&] { m.get_integer("u64"); }},
      {"'bool': expected a number, got a boolean", [&] { m.get_number("bool"); }},
      {"'u8': expected a boolean, got an integer", [&] { m.get_bool("u8"); }},
      {"'f32': expected a string, got a number", [&] { m.get_string("f32"); }},
      {"'small': expected an array of strings, got an array of int",
       [&] { m.get_strings("small"); }},
      {"'texts': expected an array of numbers, got an array of str",
       [&] { m.get_numbers("texts"); }},
      {"'flags': expected an array of integers, got an array of bool",
       [&] { m.get_integers("flags"); }},
      {"'u8': expected an array of integers, got an integer", [&] { m.get_integers("u8"); }}};
  for (const auto& [part, get] : wrong) expect_error(ErrorKind::kData, {"x.gguf", part}, get);
}

TEST(Gguf, SurvivesTruncationAndFlippedBits) {
  expect_survives_damage(every_type().text, [](std::span<const std::byte> bytes) {
    return open_gguf_bytes(bytes, "x.gguf");
  });
}

TEST(Gguf, RefusesForeignHeaders) {
  expect_refused(Bytes().raw("GGML").pad_to(64), {"byte 0", "magic: expected 'GGUF'"});
  expect_refused(GgufBytes(0, 0, 1), {"byte 4", "version: expected 2 or 3, got 1"});
  expect_refused(GgufBytes(0, 0, 4), {"version: expected 2 or 3, got 4"});
  expect_refused(GgufBytes(0, 0, 0x03000000), {"little-endian"});
  expect_refused(Bytes().raw("GGUF"), {"header: expected at least 24 bytes, got 4"});
  expect_refused(Bytes(), {"empty file"});
}

TEST(Gguf, CountsAreBoundedByTheBytesThereAre) {
  constexpr uint64_t kHuge = uint64_t{1} << 63;
  expect_refused(GgufBytes(kHuge, 0), {"byte 8", "tensor count: expected at most 0"});
  expect_refused(GgufBytes(UINT64_MAX, 0).data(100), {"tensor count"});
  expect_refused(GgufBytes(0, kHuge).data(100), {"byte 16", "key count: expected at most"});
  expect_refused(GgufBytes(0, 1).put<uint64_t>(kHuge).pad_to(64), {"key: expected a length"});
  expect_refused(GgufBytes(0, 1).put<uint64_t>(0).pad_to(64), {"key: expected a length"});
  expect_refused(GgufBytes(0, 1).put<uint64_t>(50).pad_to(64), {"key: expected 50 bytes, got"});
  GgufBytes text(0, 1);
  text.key("k", GgufType::kString).put(kHuge);
  expect_refused(text, {"byte 45", "key 'k'", "got 0 (truncated"});
  for (const auto type : {GgufType::kU8, GgufType::kF64, GgufType::kString, GgufType::kBool}) {
    GgufBytes array(0, 1);
    array.array_key("k", type, kHuge / 4).data(16);
    expect_refused(array, {"key 'k'", "array length: expected at most"});
  }
  GgufBytes wide(0, 1);
  wide.array_key("k", GgufType::kF64, 3).put(1.0).put(2.0);
  expect_refused(wide, {"key 'k'", "expected 3 elements of 8 bytes, got 16 bytes"});
}

TEST(Gguf, RefusesMalformedValues) {
  GgufBytes twice(0, 2);
  twice.key("k", GgufType::kU8, uint8_t{1}).key("k", GgufType::kU8, uint8_t{1});
  expect_refused(twice, {"key 'k': expected once, got twice"});
  expect_refused(GgufBytes(0, 1).key("k", static_cast<GgufType>(13), uint64_t{0}),
                 {"type: expected below 13, got 13"});
  expect_refused(GgufBytes(0, 1).key("k", GgufType::kBool, uint8_t{2}), {"expected 0 or 1, got 2"});
  GgufBytes nested(0, 1);
  nested.array_key("k", GgufType::kArray, 1).put<uint64_t>(0);
  expect_refused(nested, {"element type: expected a scalar, got array"});
  GgufBytes large(0, 1);
  large.array_key("k", GgufType::kU64, 1).put(UINT64_MAX);
  expect_refused(large, {"u64 array: expected elements below 2^63"});
  // Control characters of a hostile name do not reach the terminal.
  GgufBytes control(0, 1);
  control.key("a\x1b[2J\n", GgufType::kBool, uint8_t{7});
  expect_refused(control, {"'a\\x1b[2J\\x0a'"});
}

TEST(Gguf, RefusesImpossibleAlignment) {
  for (const uint32_t alignment : {0u, 1u, 4u, 12u, 33u, 1u << 21, 1u << 31, UINT32_MAX}) {
    GgufBytes file(0, 1);
    file.key("general.alignment", GgufType::kU32, alignment);
    expect_refused(file, {"general.alignment", "power of two from 8 to 1048576"});
  }
  expect_refused(GgufBytes(0, 1).key("general.alignment", GgufType::kI64, int64_t{-32}), {"-32"});
  expect_refused(GgufBytes(0, 1).text_key("general.alignment", "32"), {"expected an integer"});
  GgufBytes odd(1, 0);
  odd.tensor("t", {1}, kF32, 8).data(64);
  expect_refused(odd, {"tensor 't'", "data offset: expected a multiple of 32", "got 8"});
  GgufBytes eight(1, 1);
  eight.key("general.alignment", GgufType::kU32, uint32_t{8}).tensor("t", {1}, kF32, 8).data(12, 8);
  EXPECT_EQ(std::to_integer<int>(open(eight)->at("t").view.data()[0]), 8);
}

TEST(Gguf, RefusesImpossibleShapes) {
  constexpr uint64_t kHalf = uint64_t{1} << 32;
  const auto refuse = [](std::initializer_list<uint64_t> dims, uint32_t type,
                         std::initializer_list<std::string_view> parts) {
    GgufBytes file(1, 0);
    file.tensor("t", dims, type, 0).data(256);
    expect_refused(file, parts);
  };
  refuse({}, kF32, {"tensor 't'", "number of dimensions: expected 1 to 4, got 0"});
  refuse({1, 1, 1, 1, 1}, kF32, {"number of dimensions: expected 1 to 4, got 5"});
  refuse({0}, kF32, {"dimensions: expected 1 to 2^63 - 1, got [0]"});
  refuse({4, UINT64_MAX}, kF32, {"got [-1, 4]"});
  refuse({kHalf, kHalf}, kF32, {"expected to fit in the file"});
  refuse({kHalf, kHalf, kHalf, kHalf}, 24, {"expected to fit in the file"});
  refuse({uint64_t{1} << 61}, kF32, {"expected to fit in the file"});
  refuse({uint64_t{1} << 62, 3}, 24, {"expected to fit in the file"});
  refuse({33}, 8, {"row: expected a multiple of 32 elements of q8_0, got 33"});
  refuse({128}, 14, {"row: expected a multiple of 256 elements of q6_k, got 128"});
  refuse({256}, 10, {"tensor 't'", "type: expected one that is supported, got Q2_K"});
  refuse({1}, 28, {"got F64"});
  refuse({1}, 77, {"got number 77"});
  GgufBytes rank(1, 0);
  rank.name("t").put(UINT32_MAX);
  rank.data(256);
  expect_refused(rank, {"number of dimensions", "got 4294967295"});
}

TEST(Gguf, DataMustLieInTheFileWithoutOverlap) {
  GgufBytes past(1, 0);
  past.tensor("t", {9}, kF32, 0).data(32);
  expect_refused(past, {"tensor 't'", "expected to end inside the file of 96 bytes"});
  GgufBytes far(1, 0);
  far.tensor("t", {1}, kF32, UINT64_MAX - 31).data(32);
  expect_refused(far, {"tensor 't'", "data offset"});
  GgufBytes overlap(2, 0);
  overlap.tensor("a", {16}, kF32, 0).tensor("b", {8}, kF32, 32).data(64);
  expect_refused(overlap, {"tensor 'b'", "where 'a' ends, got an overlap"});
  GgufBytes same(2, 0);
  same.tensor("a", {8}, kF32, 0).tensor("b", {8}, kF32, 0).data(64);
  expect_refused(same, {"got an overlap"});
  GgufBytes twice(2, 0);
  twice.tensor("a", {8}, kF32, 0).tensor("a", {8}, kF32, 32).data(64);
  expect_refused(twice, {"tensor 'a': expected once, got twice"});
  GgufBytes no_name(1, 0);
  no_name.tensor("", {8}, kF32, 0).data(64);
  expect_refused(no_name, {"tensor name: expected a length of 1"});
}

class GgufSplit : public testing::Test {
 protected:
  static GgufBytes part(std::string_view tensor, uint16_t number, uint16_t count, int32_t total) {
    GgufBytes file(1, 3);
    file.key("split.no", GgufType::kU16, number).key("split.count", GgufType::kU16, count);
    file.key("split.tensors.count", GgufType::kI32, total);
    file.tensor(tensor, {8}, kF32, 0).data(32);
    return file;
  }
  std::string write(int number, const GgufBytes& bytes, int count = 2) const {
    return folder_.write(fmt::format("m-{:05}-of-{:05}.gguf", number, count), bytes.text);
  }

  TemporaryFolder folder_;
};

TEST_F(GgufSplit, PartsAreOneSource) {
  const std::string first = write(1, part("a", 0, 2, 2));
  const std::string second = write(2, part("b", 1, 2, 2));
  const auto file = GgufFile::open(first);
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->at("a").file, first);
  EXPECT_EQ(file->at("b").file, second);
  EXPECT_EQ(file->file_bytes(), static_cast<int64_t>(2 * part("a", 0, 2, 2).text.size()));
  const uint64_t sum = sum_of_bytes(*file);
  for (const TensorEntry& tensor : file->tensors()) {
    file->will_need(tensor);
    file->drop(tensor);
  }
  EXPECT_EQ(sum_of_bytes(*file), sum);
  EXPECT_TRUE(is_gguf(first));
}

TEST_F(GgufSplit, ContradictionsAreRefused) {
  const auto refuse = [](const std::string& path, std::initializer_list<std::string_view> parts) {
    expect_error(ErrorKind::kData, parts, [&] { GgufFile::open(path); });
  };
  const std::string first = write(1, part("a", 0, 2, 2));
  expect_error(ErrorKind::kSystem, {"m-00002-of-00002.gguf", "open"},
               [&] { GgufFile::open(first); });
  refuse(write(2, part("b", 1, 2, 2)), {"'split.no': expected 0, the first part", "got 1"});
  write(2, part("b", 0, 2, 2));
  refuse(first, {"00002.gguf", "'split.no': expected 1, got 0"});
  write(2, part("b", 1, 3, 2));
  refuse(first, {"'split.count': expected 2", "got 3"});
  write(2, part("a", 1, 2, 2));
  refuse(first, {"tensor 'a': expected in one part only"});
  write(2, part("b", 1, 2, 2));
  refuse(write(1, part("a", 0, 2, 7)), {"'split.tensors.count': expected 2", "got 7"});
  refuse(folder_.write("m.gguf", part("a", 0, 2, 2).text), {"-00001-of-00002.gguf"});
  refuse(write(1, part("a", 0, 2, 2), 3), {"-00001-of-00002.gguf"});
  expect_refused(part("a", 0, 2, 2), {"expected a whole file, got 2 parts"});
}

TEST(Gguf, IsRecognisedByItsMagic) {
  const TemporaryFolder folder;
  EXPECT_FALSE(is_gguf(folder.file("absent")));
  EXPECT_FALSE(is_gguf(folder.path()));
  EXPECT_FALSE(is_gguf(folder.write("short", "GGU")));
  EXPECT_TRUE(is_gguf(folder.write("magic", "GGUF")));
}

}  // namespace
}  // namespace spb::io
