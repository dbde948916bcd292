#include "core/buffer.h"
#include "io/checkpoint.h"
#include "io/test_files.h"

namespace spb::io {
namespace {

std::string safetensors(std::string_view header, size_t data_bytes) {
  Bytes bytes;
  bytes.put<uint64_t>(header.size()).raw(header);
  for (size_t i = 0; i < data_bytes; ++i) bytes.put(static_cast<uint8_t>(i));
  return bytes.text;
}

std::unique_ptr<TensorSource> open(std::string_view file) {
  return open_safetensors_bytes(bytes_of(file), "x.safetensors");
}

void expect_refused(std::string_view header, size_t data_bytes,
                    std::initializer_list<std::string_view> parts) {
  const std::string file = safetensors(header, data_bytes);
  expect_error(ErrorKind::kData, parts, [&] { open(file); });
}

constexpr std::string_view kValid =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},)"
    R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}} )";

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirData) {
  const auto source = open(safetensors(kValid, 12));
  ASSERT_EQ(source->tensors().size(), 2u);
  EXPECT_EQ(source->tensors()[0].name, "a");
  EXPECT_EQ(source->tensors()[0].view.shape().rank(), 0);
  const ConstTensorView b = source->at("b").view;
  EXPECT_EQ(b.dtype(), DType::kBF16);
  EXPECT_EQ(b.shape(), (Shape{2, 2}));
  EXPECT_EQ(std::to_integer<int>(b.data()[0]), 4);
}

TEST(Safetensors, MisalignedDataIsCopiedToAnAlignedPlace) {
  for (size_t blanks = 0; blanks < 9; ++blanks) {
    const auto source = open(safetensors(std::string(kValid) + std::string(blanks, ' '), 12));
    for (const TensorEntry& tensor : source->tensors()) {
      const auto address = reinterpret_cast<uintptr_t>(tensor.view.data());
      EXPECT_EQ(address % static_cast<uintptr_t>(block_bytes(tensor.view.dtype())), 0u);
    }
    EXPECT_EQ(sum_of_bytes(*source), 66u);
  }
}

TEST(Safetensors, SurvivesTruncationAndFlippedBits) {
  expect_survives_damage(safetensors(kValid, 12), [](std::span<const std::byte> bytes) {
    return open_safetensors_bytes(bytes, "x.safetensors");
  });
}

TEST(Safetensors, RefusesImpossibleHeaders) {
  Bytes huge;
  huge.put(UINT64_MAX).raw("{}");
  expect_error(ErrorKind::kData, {"byte 0", "header length: expected at most 2"},
               [&] { open(huge.text); });
  expect_refused("[]", 0, {"header: expected an object, got an array"});
  expect_refused("{", 0, {"x.safetensors: JSON"});
  expect_refused(std::string(100'000, '['), 0, {"levels"});
  expect_refused(R"({"a":1})", 0, {"tensor 'a': expected an object"});
  expect_refused(R"({"a":{}})", 0, {"tensor 'a': expected the key 'dtype'"});
  const std::string_view tensor = R"({"dtype":"I8","shape":[1],"data_offsets":[0,1]})";
  expect_refused(fmt::format(R"({{"a":{0},"a":{0}}})", tensor), 1, {"'a': expected once"});
}

TEST(Safetensors, RefusesImpossibleTensors) {
  const auto refuse = [](std::string_view fields, std::initializer_list<std::string_view> parts) {
    expect_refused(fmt::format(R"({{"t":{{{}}}}})", fields), 16, parts);
  };
  refuse(R"("dtype":"F64","shape":[2],"data_offsets":[0,16])",
         {"tensor 't': dtype: expected F32, F16, BF16, I8, I32 or I64, got F64"});
  refuse(R"("dtype":7,"shape":[2],"data_offsets":[0,16])", {"dtype: expected a string"});
  refuse(R"("dtype":"F32","shape":[-4],"data_offsets":[0,16])", {"shape: expected positive"});
  refuse(R"("dtype":"F32","shape":[4,0],"data_offsets":[0,0])", {"got [4, 0]"});
  refuse(R"("dtype":"F32","shape":[1,1,1,1,4],"data_offsets":[0,16])", {"at most 4 elements"});
  refuse(R"("dtype":"F32","shape":[4.0],"data_offsets":[0,16])", {"expected an integer"});
  refuse(R"("dtype":"F32","shape":4,"data_offsets":[0,16])", {"shape: expected an array"});
  refuse(R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16])", {"below 2^63"});
  refuse(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16])",
         {"below 2^63 bytes"});
  refuse(R"("dtype":"I8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807])",
         {"data_offsets: expected a range in 16 bytes"});
  refuse(R"("dtype":"F32","shape":[4],"data_offsets":[0,20])", {"range in 16 bytes"});
  refuse(R"("dtype":"F32","shape":[4],"data_offsets":[16,0])", {"range in 16 bytes"});
  refuse(R"("dtype":"F32","shape":[4],"data_offsets":[-16,0])", {"range in 16 bytes"});
  refuse(R"("dtype":"F32","shape":[4],"data_offsets":[0])", {"range in 16 bytes"});
  refuse(R"("dtype":"F32","shape":[3],"data_offsets":[0,16])", {"expected 12 bytes", "got 16"});
  refuse(R"("dtype":"F32","shape":[3],"data_offsets":[0,12])", {"expected the end of the file"});
  refuse(R"("dtype":"F32","shape":[3],"data_offsets":[4,16])", {"expected to begin at 0", "got 4"});
}

TEST(Safetensors, RefusesOverlap) {
  expect_refused(R"({"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},)"
                 R"("b":{"dtype":"I8","shape":[3],"data_offsets":[2,5]}})",
                 5, {"tensor 'b'", "expected to begin at 3", "got 2"});
}

TEST(SafetensorsWriter, RoundTripsEveryPlainDType) {
  const TemporaryFolder folder;
  std::vector<Tensor> storage;
  std::vector<TensorEntry> tensors;
  for (int i = 0; i < kNumDTypes && is_plain(static_cast<DType>(i)); ++i) {
    storage.emplace_back(static_cast<DType>(i), Shape{3, i + 1});
    for (int64_t b = 0; b < storage.back().bytes(); ++b) {
      storage.back().view().data()[b] = static_cast<std::byte>(b + i);
    }
  }
  for (const Tensor& tensor : storage) {
    tensors.push_back({fmt::format("tensor \"{}\" é", name(tensor.dtype())), tensor.view(), ""});
  }
  write_safetensors(folder.file("m.safetensors"), tensors);
  const auto source = open_safetensors(folder.file("m.safetensors"));
  ASSERT_EQ(source->tensors().size(), tensors.size());
  for (const TensorEntry& tensor : tensors) {
    const ConstTensorView view = source->at(tensor.name).view;
    EXPECT_EQ(view.dtype(), tensor.view.dtype());
    EXPECT_EQ(view.shape(), tensor.view.shape());
    EXPECT_EQ(std::memcmp(view.data(), tensor.view.data(), view.bytes()), 0) << tensor.name;
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(source->tensors()[0].view.data()) % 64, 0u);
}

TEST(SafetensorsWriter, RefusesWhatTheFormatCannotHold) {
  const TemporaryFolder folder;
  const auto refuse = [&](std::vector<TensorEntry> tensors, std::string_view part) {
    expect_error(ErrorKind::kUsage, {"m.safetensors", part},
                 [&] { write_safetensors(folder.file("m.safetensors"), tensors); });
  };
  const Tensor plain(DType::kF32, {2, 4});
  const Tensor blocks(DType::kQ8_0, {32});
  refuse({{"a", plain.view(), ""}, {"a", plain.view(), ""}}, "'a': name: expected once");
  refuse({{"__metadata__", plain.view(), ""}}, "reserved");
  refuse({{"a", blocks.view(), ""}}, "dtype: expected a plain one, got q8_0");
  refuse({{"a", {}, ""}}, "expected contiguous elements");
  refuse({{"a", {plain.view().data(), DType::kF32, {2, 2}, 16}, ""}}, "contiguous");
  refuse({{"\xff", plain.view(), ""}}, "expected UTF-8");
  EXPECT_EQ(folder.count(), 0u);
}

}  // namespace
}  // namespace spb::io
