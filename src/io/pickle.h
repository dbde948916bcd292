// The tensors that the pickle of a PyTorch checkpoint describes.
//
// An interpreter of the few opcodes that torch.save writes for a dictionary of tensors. It builds
// plain values and calls nothing; a global name outside the allow-list, an opcode outside the list
// or a call with other arguments is a data error that names it. Values of the dictionary that are
// no tensors (numbers, nested dictionaries) are skipped.
//
//   opcodes  PROTO FRAME STOP MARK POP POP_MARK, constants, strings, tuples, lists, dictionaries,
//            memo, GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
//   globals  collections.OrderedDict, torch._utils._rebuild_tensor_v2 and _rebuild_parameter,
//            {torch, torch.storage}.{Float,Half,BFloat16,Char,Int,Long}Storage
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace spb::io {

struct PickledTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::string storage_key;       // its bytes are the record "data/<key>" of the archive
  int64_t storage_elements = 0;  // as stated, not yet compared with the record
  int64_t offset = 0;            // in elements of the storage
  std::vector<int64_t> dims;     // at most Shape::kMaxRank, any value
  std::vector<int64_t> strides;  // as many, in elements
};

// `file` and `base`, the offset of the pickle in it, are for messages. Names are unique.
std::vector<PickledTensor> read_pickled_tensors(std::span<const std::byte> pickle,
                                                std::string_view file, uint64_t base);

}  // namespace spb::io
