// Opcodes and values of the pickle interpreter (pickle.cpp), and of nobody else.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/dtype.h"

namespace spb::io::pickle {

enum class Op : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kEmptyTuple = ')',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

using Ref = uint32_t;  // index of a value: containers may refer to each other in circles

struct None {};
struct Tuple {
  std::vector<Ref> items;
};
struct List {
  std::vector<Ref> items;
};
struct Dict {
  std::vector<std::pair<Ref, Ref>> items;
};
enum class Function { kOrderedDict, kRebuildTensor, kRebuildParameter };
struct StorageType {
  DType dtype;
};
struct Storage {
  DType dtype;
  std::string_view key;
  int64_t elements;
};
struct TensorIndex {
  size_t index;  // of the tensors built so far
};
using Value = std::variant<None, bool, int64_t, double, std::string_view, Tuple, List, Dict,
                           Function, StorageType, Storage, TensorIndex>;
inline constexpr std::array<std::string_view, std::variant_size_v<Value>> kKinds = {
    "None",   "a boolean",    "an integer", "a float",        "a string",  "a tuple",
    "a list", "a dictionary", "a function", "a storage type", "a storage", "a tensor"};

}  // namespace spb::io::pickle
