// One GGUF file parsed and checked, before split files are joined.
#pragma once

#include <vector>

#include "io/gguf.h"
#include "io/mapped_file.h"

namespace spb::io {

struct GgufPart {
  GgufMetadata metadata;
  std::vector<TensorEntry> tensors;  // views of the mapping
};

GgufPart parse_gguf(const MappedFile& file);

}  // namespace spb::io
