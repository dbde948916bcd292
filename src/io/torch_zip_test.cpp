#include "core/half.h"
#include "core/test_source.h"
#include "io/checkpoint.h"
#include "io/torch_zip_test_bytes.h"

namespace spb::io {
namespace {

using Rebuild = PickleBytes::Rebuild;

std::unique_ptr<TensorSource> open(std::string_view file) {
  return open_torch_zip_bytes(bytes_of(file), "x.bin");
}

void expect_refused(std::string_view file, std::initializer_list<std::string_view> parts) {
  expect_error(ErrorKind::kData, parts, [&] { open(file); });
}

void expect_pickle_refused(const Bytes& pickle, std::initializer_list<std::string_view> parts) {
  expect_refused(checkpoint_bytes(pickle.text), parts);
}

PickleBytes begin() {
  PickleBytes pickle;
  pickle.op("\x80\x02}");
  return pickle;
}

PickleBytes one_tensor(const Rebuild& tensor = {}) {
  PickleBytes pickle = begin();
  pickle.string("t").tensor(tensor).op("s.");
  return pickle;
}

std::string fixture(const std::string& name) {
  return test::source_root() + "/tests/fixtures/io/" + name;
}

TEST(TorchZip, ReadsAStateDictionaryOfPyTorch) {
  const auto source = open_torch_zip(fixture("state_dict.pt"));
  ASSERT_EQ(source->tensors().size(), 8u);
  const ConstTensorView f32 = source->at("f32").view;
  EXPECT_EQ(f32.shape(), (Shape{2, 3}));
  for (int i = 0; i < 6; ++i) EXPECT_EQ(f32.as<float>()[i], static_cast<float>(i) - 2.5f);
  const ConstTensorView half = source->at("f16").view;
  for (int i = 0; i < 8; ++i) EXPECT_EQ(to_float(half.as<f16>()[i]), static_cast<float>(i) / 4);
  const ConstTensorView brain = source->at("bf16").view;
  EXPECT_EQ(brain.shape(), (Shape{1, 2, 2}));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(to_float(brain.as<bf16>()[i]), static_cast<float>(i));
  EXPECT_EQ(source->at("i8").view.as<int8_t>()[0], -128);
  EXPECT_EQ(source->at("i32").view.as<int32_t>()[0], -5);
  EXPECT_EQ(source->at("i32").view.as<int32_t>()[1], 7);
  EXPECT_EQ(source->at("i64").view.shape().rank(), 0);
  EXPECT_EQ(*source->at("i64").view.as<int64_t>(), int64_t{1} << 40);
  // Two tensors over one storage.
  const ConstTensorView a = source->at("shared.a").view;
  const ConstTensorView b = source->at("shared.b").view;
  for (int i = 0; i < 6; ++i) EXPECT_EQ(a.as<float>()[i], static_cast<float>(4 + i));
  for (int i = 0; i < 12; ++i) EXPECT_EQ(b.as<float>()[i], static_cast<float>(12 + i));
  EXPECT_EQ(b.data() - a.data(), 32);
}

TEST(TorchZip, ReadsParametersInPickleProtocol4) {
  const auto source = open_torch_zip(fixture("parameters_protocol4.pt"));
  ASSERT_EQ(source->tensors().size(), 3u);
  EXPECT_EQ(source->at("linear.weight").view.as<float>()[5], 5.0f);
  EXPECT_EQ(source->at("linear.bias").view.as<float>()[1], 20.0f);
  EXPECT_EQ(source->at("scale").view.as<float>()[4], 1.0f);
}

TEST(TorchZip, NamesWhatItRefusesInFilesOfPyTorch) {
  const auto refuse = [](const char* name, std::string_view part) {
    expect_error(ErrorKind::kData, {name, part}, [&] { open_torch_zip(fixture(name)); });
  };
  refuse("module.pt", "'__main__.Layer'");
  refuse("double.pt", "'torch.DoubleStorage'");
  refuse("transposed.pt",
         "tensor 't': strides: expected contiguous elements for [3, 2], got [1, 3]");
  refuse("nested.pt", "expected a dictionary of tensors");
  refuse("legacy.pt", "legacy PyTorch file");
}

TEST(TorchZip, ReadsCraftedArchivesInBothForms) {
  for (const bool zip64 : {false, true}) {
    const auto source = open(checkpoint_bytes(one_tensor().text, zip64));
    EXPECT_EQ(source->at("t").view.shape(), (Shape{2, 3}));
    EXPECT_EQ(sum_of_bytes(*source), 276u);
    // The archive does not align its records.
    EXPECT_EQ(reinterpret_cast<uintptr_t>(source->at("t").view.data()) % sizeof(float), 0u);
  }
}

TEST(TorchZip, SurvivesTruncationAndFlippedBits) {
  for (const bool zip64 : {false, true}) {
    expect_survives_damage(
        checkpoint_bytes(one_tensor().text, zip64),
        [](std::span<const std::byte> bytes) { return open_torch_zip_bytes(bytes, "x.bin"); });
  }
}

TEST(TorchZip, RefusesCodeByName) {
  for (const auto& [module, name] : {std::pair{"os", "system"},
                                     {"builtins", "eval"},
                                     {"torch", "load"},
                                     {"torch._utils", "_rebuild_tensor_v3"},
                                     {"collections", "deque"},
                                     {"torch.storage", "_load_from_bytes"},
                                     {"__builtin__", "getattr"}}) {
    PickleBytes pickle = begin();
    pickle.global(module, name).string("echo").op("\x85R.");
    expect_pickle_refused(pickle, {"x.bin: byte ", fmt::format("'{}.{}'", module, name)});
    PickleBytes stacked = begin();
    stacked.string(module).string(name).op("\x93.");
    expect_pickle_refused(stacked, {fmt::format("'{}.{}'", module, name)});
  }
}

TEST(TorchZip, RefusesOtherOpcodes) {
  for (const std::string_view op :
       {"i", "o", "I", "F",    "L",    "S",    "V",    "P",    "p",    "g",
        "2", "d", "l", "\x81", "\x82", "\x8b", "\x8f", "\x92", "\x96", "\xff"}) {
    PickleBytes pickle = begin();
    pickle.op(op).op("1\n.");
    expect_pickle_refused(pickle, {"opcode: expected one that plain tensors need, got 0x"});
  }
}

TEST(TorchZip, RefusesMalformedPickles) {
  const auto refuse = [](std::string_view opcodes, std::string_view part) {
    PickleBytes pickle = begin();
    pickle.op(opcodes);
    expect_pickle_refused(pickle, {"x.bin: byte ", "pickle: ", part});
  };
  refuse("", "opcode: expected 1 bytes, got 0");
  refuse("0.", "stack: expected a value, got none");
  refuse("(s.", "stack: expected a value, got none");
  refuse("t.", "stack: expected a mark, got none");
  refuse("(Nu.", "expected keys and values, got 1 items");
  refuse("h\x07.", "memo: expected a value in slot 7");
  refuse("NQ.", "persistent id: expected a tuple, got None");
  refuse(")Q.", "persistent id: expected 5 items, got 0");
  refuse("N)R.", "call: expected a function, got None");
  refuse("ccollections\nOrderedDict\nNR.", "call arguments: expected a tuple, got None");
  refuse("ccollections\nOrderedDict\nN\x85R.", "OrderedDict: expected no arguments, got 1");
  refuse("ctorch._utils\n_rebuild_tensor_v2\n)R.", "expected 6 or 7 arguments, got 0");
  refuse("ctorch._utils\n_rebuild_parameter\n)R.", "expected 3 arguments, got 0");
  refuse("ctorch._utils\n_rebuild_parameter\nNNN\x87R.", "parameter: expected a tensor, got None");
  refuse("N.", "result: expected a dictionary, got None");
  refuse("]NNs.", "SETITEMS: expected a dictionary, got a list");
  refuse("}Na.", "APPENDS: expected a list, got a dictionary");
  refuse("NNb.", "BUILD: expected a dictionary, got None");
  refuse("X\xff\xff\xff\xff", "string: expected 4294967295 bytes, got 0");
  refuse("\x8a\x09", "integer: expected at most 8 bytes, got 9");
  refuse("cos\n", "global: expected a line");
  refuse("\x80\x07.", "protocol: expected 2 to 5, got 7");
}

TEST(TorchZip, ContainersThatHoldThemselvesAreHarmless) {
  PickleBytes pickle = begin();
  pickle.op("q").op(std::string_view("\0", 1)).string("self").op("h").op(std::string_view("\0", 1));
  pickle.op("s").string("t").tensor({}).op("s.");
  EXPECT_EQ(open(checkpoint_bytes(pickle.text))->tensors().size(), 1u);
}

TEST(TorchZip, MemoryStaysInProportionToThePickle) {
  PickleBytes many = begin();
  many.op(std::string((size_t{1} << 20) + 1, 'N'));
  expect_pickle_refused(many, {"pickle: expected at most 1048576 values"});
}

TEST(TorchZip, RefusesTensorsOutsideTheirStorage) {
  const auto refuse = [](const Rebuild& tensor, std::initializer_list<std::string_view> parts) {
    expect_pickle_refused(one_tensor(tensor), parts);
  };
  refuse({.key = "1"}, {"tensor 't': storage: expected a record 'data/1'"});
  refuse({.key = "../data/0"}, {"expected a record"});
  refuse({.elements = 7}, {"expected at most 6 elements of f32 in record 'a/data/0', got 7"});
  refuse({.elements = -1}, {"got -1"});
  refuse({.type = "LongStorage"}, {"expected at most 3 elements of i64"});
  refuse({.offset = 1}, {"expected inside a storage of 6 elements, got 6 elements from 1"});
  refuse({.offset = -1}, {"from -1"});
  refuse({.offset = INT64_MAX}, {"expected inside a storage"});
  refuse({.elements = 5}, {"expected inside a storage of 5 elements"});
  refuse({.dims = {2, 0}}, {"shape: expected positive", "got [2, 0]"});
  refuse({.dims = {2, -3}}, {"got [2, -3]"});
  refuse({.dims = {int64_t{1} << 32, int64_t{1} << 32}}, {"below 2^63 bytes"});
  refuse({.dims = {int64_t{1} << 60, 1}, .strides = {1, 1}}, {"expected inside a storage"});
  refuse({.strides = {0, 1}}, {"strides: expected contiguous", "got [0, 1]"});
  refuse({.strides = {3, -1}}, {"got [3, -1]"});
  refuse({.strides = {1}}, {"tensor strides: expected 2 of them, got 1"});
  refuse({.dims = {1, 1, 1, 1, 1}}, {"at most 4 dimensions, got 5"});
  // The stride of a dimension of one element does not matter.
  const Rebuild row = {.dims = {1, 6}, .strides = {99, 1}};
  EXPECT_EQ(open(checkpoint_bytes(one_tensor(row).text))->tensors().size(), 1u);
}

TEST(TorchZip, RefusesAmbiguousNames) {
  PickleBytes twice = begin();
  twice.string("t").tensor({}).op("s").string("t").tensor({}).op("s.");
  expect_pickle_refused(twice, {"tensor 't': expected once, got twice"});
  PickleBytes number = begin();
  number.integer(1).tensor({}).op("s.");
  expect_pickle_refused(number, {"tensor name: expected a string, got an integer"});
}

TEST(TorchZip, RefusesWrongArchives) {
  const std::string pickle = one_tensor().text;
  const std::string data(24, 'x');
  expect_refused("PK", {"x.bin: expected a zip archive"});
  expect_refused(zip_bytes({}), {"expected a record */data.pkl, got none in 0 records"});
  expect_refused(zip_bytes({{"a/data.pkl", pickle}, {"b/data.pkl", pickle}}),
                 {"expected one record */data.pkl"});
  expect_refused(zip_bytes({{"a/data.pkl", pickle}, {"a/data.pkl", pickle}}),
                 {"record 'a/data.pkl': expected once, got twice"});
  expect_refused(zip_bytes({{"a/data.pkl", pickle, 8}}), {"expected stored data", "got method 8"});
  expect_refused(zip_bytes({{"a/data.pkl", pickle, 0, 1}}), {"expected no encryption"});
  expect_refused(zip_bytes({{"a/data.pkl", pickle}, {"a/data/0", data}, {"a/byteorder", "big"}}),
                 {"byte order: expected 'little', got 'big'"});
  const std::string commented =
      zip_bytes({{"a/data.pkl", pickle}, {"a/data/0", data}}, false, "hi");
  EXPECT_EQ(open(commented)->tensors().size(), 1u);
}

TEST(TorchZip, RefusesRecordsThatLieElsewhere) {
  const std::string pickle = one_tensor().text;
  const std::string valid = zip_bytes({{"a/data.pkl", pickle}, {"a/data/0", std::string(24, 'x')}});
  const auto patched = [&](size_t entry, size_t field, uint32_t value) {
    std::string file = valid;
    size_t place = 0;
    for (size_t i = 0; i <= entry; ++i) place = file.find("PK\x01\x02", place + 1);
    std::memcpy(file.data() + place + field, &value, sizeof(value));
    return file;
  };
  constexpr size_t kCompressed = 20;
  constexpr size_t kOffset = 42;
  expect_refused(patched(1, kOffset, 1), {"record 'a/data/0': local header: expected"});
  expect_refused(patched(1, kOffset, 0), {"name: expected as in the directory, got 'a/data.pkl'"});
  expect_refused(patched(1, kOffset, 0x7fffffff), {"record 'a/data/0'", "expected 4 bytes, got 0"});
  expect_refused(patched(1, kCompressed, 23), {"size: expected 24 stored bytes, got 23"});
  const auto lengthened = [&](size_t entry, size_t bytes) {
    std::string file = patched(entry, kCompressed, static_cast<uint32_t>(bytes));
    for (size_t i = 0, place = 0; i <= entry; ++i) {
      place = file.find("PK\x01\x02", place + 1);
      if (i == entry) std::memcpy(&file[place + kCompressed + 4], &file[place + kCompressed], 4);
    }
    return file;
  };
  expect_refused(lengthened(0, pickle.size() + 4),
                 {"record 'a/data/0': expected its own bytes, got those of 'a/data.pkl'"});
  expect_refused(lengthened(1, 25), {"record 'a/data/0': data: expected to end before the dir"});
}

}  // namespace
}  // namespace spb::io
