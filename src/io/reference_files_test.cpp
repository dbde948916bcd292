// Files that other programs wrote: tests/fixtures/io/make_fixtures.py.
#include "core/block_formats.h"
#include "core/test_source.h"
#include "io/checkpoint.h"
#include "io/gguf.h"
#include "io/test_files.h"

namespace spb::io {
namespace {

std::string fixture(const std::string& name) {
  return test::source_root() + "/tests/fixtures/io/" + name;
}

std::vector<float> values(const ConstTensorView& view) {
  std::vector<float> out(static_cast<size_t>(view.shape().elements()));
  dequantize_row(view.dtype(), view.data(), out.data(), view.shape().elements());
  return out;
}

TEST(ReferenceFiles, Gguf) {
  const auto file = GgufFile::open(fixture("reference.gguf"));
  const GgufMetadata& m = file->metadata();
  EXPECT_EQ(m.get_string("general.architecture"), "llama");
  EXPECT_EQ(m.get_integer("llama.block_count"), 2);
  EXPECT_EQ(m.get_number("llama.rope.freq_base"), 10000.0);
  EXPECT_EQ(m.get_bool("tokenizer.ggml.add_bos_token"), true);
  EXPECT_EQ(m.get_integer("test.offset"), -(int64_t{1} << 40));
  EXPECT_EQ(*m.get_strings("tokenizer.ggml.tokens"), (std::vector<std::string>{"<s>", "Ġa", ""}));
  EXPECT_EQ(*m.get_integers("tokenizer.ggml.token_type"), (std::vector<int64_t>{3, 1, 1}));
  EXPECT_EQ(*m.get_numbers("tokenizer.ggml.scores"), (std::vector<double>{0.0, -1.5, -2.0}));
  EXPECT_EQ(values(file->at("norm.weight").view), (std::vector<float>{0, 1, 2, 3, 4}));
  const ConstTensorView half = file->at("half.weight").view;
  const ConstTensorView blocks = file->at("blocks.weight").view;
  EXPECT_EQ(half.shape(), (Shape{2, 32}));
  EXPECT_EQ(blocks.shape(), (Shape{2, 32}));
  EXPECT_EQ(blocks.dtype(), DType::kQ8_0);
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(values(half)[i], static_cast<float>(i) - 32);
    EXPECT_NEAR(values(blocks)[i], static_cast<float>(i) - 32, 0.13);  // half a step of 32 / 127
  }
}

TEST(ReferenceFiles, GgufIsWrittenBackTheSame) {
  const TemporaryFolder folder;
  const auto file = GgufFile::open(fixture("reference.gguf"));
  std::vector<GgufTensorPlan> tensors;
  for (const TensorEntry& entry : file->tensors()) {
    tensors.push_back({entry.name, entry.view.dtype(), entry.view.shape(),
                       [view = entry.view](std::span<std::byte> out) {
                         std::memcpy(out.data(), view.data(), out.size());
                       }});
  }
  write_gguf(folder.file("m.gguf"), file->metadata(), tensors);
  EXPECT_EQ(read_text(folder.file("m.gguf")), read_text(fixture("reference.gguf")));
}

TEST(ReferenceFiles, Safetensors) {
  const auto source = open_safetensors(fixture("reference.safetensors"));
  ASSERT_EQ(source->tensors().size(), 3u);
  EXPECT_EQ(source->at("matrix").view.shape(), (Shape{2, 3}));
  EXPECT_EQ(values(source->at("matrix").view), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(values(source->at("half").view), (std::vector<float>{0, 1, 2}));
  EXPECT_EQ(source->at("ids").view.as<int64_t>()[1], -2);
}

}  // namespace
}  // namespace spb::io
