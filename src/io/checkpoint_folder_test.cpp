#include "core/buffer.h"
#include "io/checkpoint.h"
#include "io/torch_zip_test_bytes.h"

namespace spb::io {
namespace {

class CheckpointFolder : public testing::Test {
 protected:
  void write_weights(const std::string& file, const std::string& tensor) const {
    const Tensor zeros(DType::kF32, {2});
    const TensorEntry entry{tensor, zeros.view(), ""};
    write_safetensors(folder_.file(file), {&entry, 1});
  }
  void write_pickle(const std::string& file, const std::string& tensor) const {
    PickleBytes pickle;
    pickle.op("\x80\x02}").string(tensor).tensor({}).op("s.");
    folder_.write(file, checkpoint_bytes(pickle.text));
  }
  std::string first_tensor() const {
    return open_checkpoint_folder(folder_.path())->tensors().front().name;
  }
  void expect_refused(std::initializer_list<std::string_view> parts) const {
    expect_error(ErrorKind::kData, parts, [&] { open_checkpoint_folder(folder_.path()); });
  }
  void write_index(std::string_view map) const {
    folder_.write("model.safetensors.index.json", fmt::format(R"({{"weight_map":{}}})", map));
  }

  TemporaryFolder folder_;
};

TEST_F(CheckpointFolder, LooksInTheDocumentedOrder) {
  expect_refused({"got 0 and 0"});
  write_pickle("other.bin", "e");
  EXPECT_EQ(first_tensor(), "e");
  write_weights("other.safetensors", "d");
  EXPECT_EQ(first_tensor(), "d");
  write_pickle("pytorch_model.bin", "c");
  EXPECT_EQ(first_tensor(), "c");
  write_pickle("shard.pt", "b");
  folder_.write("pytorch_model.bin.index.json", R"({"weight_map":{"b":"shard.pt"}})");
  EXPECT_EQ(first_tensor(), "b");
  write_weights("model.safetensors", "a");
  EXPECT_EQ(first_tensor(), "a");
  write_index(R"({"d":"other.safetensors"})");
  EXPECT_EQ(first_tensor(), "d");
}

TEST_F(CheckpointFolder, ShardsAreOneSource) {
  write_weights("m1.safetensors", "a");
  write_weights("m2.safetensors", "b");
  write_index(R"({"a":"m1.safetensors","b":"m2.safetensors"})");
  const auto source = open_checkpoint_folder(folder_.path());
  EXPECT_EQ(source->tensors().size(), 2u);
  EXPECT_EQ(source->at("b").file, folder_.file("m2.safetensors"));
  for (const TensorEntry& tensor : source->tensors()) {
    source->will_need(tensor);
    source->drop(tensor);
  }
  EXPECT_EQ(sum_of_bytes(*source), 0u);
  expect_error(ErrorKind::kData, {"model.safetensors.index.json", "'c'"}, [&] { source->at("c"); });
}

TEST_F(CheckpointFolder, ShardNamesCannotLeaveTheFolder) {
  write_weights("m1.safetensors", "a");
  for (const std::string_view name : {"../m1.safetensors", "/etc/passwd", "", ".", "..", "x/y",
                                      "a\\\\b", "m1.safetensors\\u0000.bin"}) {
    write_index(fmt::format(R"({{"a":"{}"}})", name));
    expect_refused({"index.json: weight_map: expected the name of a file in the same folder"});
  }
}

TEST_F(CheckpointFolder, IndexAndShardsMustAgree) {
  write_weights("m1.safetensors", "a");
  write_weights("m2.safetensors", "b");
  write_weights("m3.safetensors", "a");
  write_index(R"({"a":"m1.safetensors","c":"m2.safetensors"})");
  expect_refused({"tensor 'c': expected in 'm2.safetensors', got it nowhere"});
  write_index(R"({"a":"m2.safetensors","b":"m1.safetensors"})");
  expect_refused({"tensor 'a': expected in 'm2.safetensors'", "m1.safetensors"});
  write_index(R"({"a":"m1.safetensors","b":"m3.safetensors"})");
  expect_refused({"m3.safetensors: tensor 'a': expected in one shard only"});
  write_index(R"({"a":"m1.safetensors","a":"m1.safetensors"})");
  expect_refused({"JSON key 'a': expected once"});
  write_index("{}");
  expect_refused({"expected 1 to 4096 shards, got 0"});
  write_index("[]");
  expect_refused({"weight_map: expected an object"});
  write_index(R"({"a":1})");
  expect_refused({"weight_map: 'a': expected a string"});
  folder_.write("model.safetensors.index.json", "{}");
  expect_refused({"expected the key 'weight_map'"});
  write_index(R"({"a":"absent.safetensors"})");
  expect_error(ErrorKind::kSystem, {"absent.safetensors"},
               [&] { open_checkpoint_folder(folder_.path()); });
}

TEST_F(CheckpointFolder, RefusesAmbiguityAndWhatIsNoFolder) {
  write_weights("x.safetensors", "a");
  write_weights("y.safetensors", "b");
  write_pickle("z.bin", "c");
  expect_refused({"got 2 and 1 of these"});
  expect_error(ErrorKind::kData, {"expected a folder, got a file"},
               [&] { open_checkpoint_folder(folder_.file("z.bin")); });
  expect_error(ErrorKind::kData, {"expected a folder, got nothing"},
               [&] { open_checkpoint_folder(folder_.file("absent")); });
}

}  // namespace
}  // namespace spb::io
