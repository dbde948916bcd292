#include "core/dtype.h"

#include <array>

#include "core/error.h"

namespace spb {
namespace {

struct DTypeFacts {
  std::string_view name;
  int16_t block_elements;
  int16_t block_bytes;
};

constexpr std::array<DTypeFacts, kNumDTypes> kFacts = {{
    {"f32", 1, 4},
    {"f16", 1, 2},
    {"bf16", 1, 2},
    {"i8", 1, 1},
    {"i32", 1, 4},
    {"i64", 1, 8},
    {"q8_0", 32, 34},
    {"q4_0", 32, 18},
    {"q4_1", 32, 20},
    {"q5_0", 32, 22},
    {"q5_1", 32, 24},
    {"q4_k", 256, 144},
    {"q5_k", 256, 176},
    {"q6_k", 256, 210},
}};

const DTypeFacts& facts(DType dtype) { return kFacts.at(static_cast<size_t>(dtype)); }

}  // namespace

std::string_view name(DType dtype) { return facts(dtype).name; }

std::optional<DType> parse_dtype(std::string_view name) {
  for (int i = 0; i < kNumDTypes; ++i) {
    if (kFacts[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

int64_t block_elements(DType dtype) { return facts(dtype).block_elements; }
int64_t block_bytes(DType dtype) { return facts(dtype).block_bytes; }

int64_t row_bytes(DType dtype, int64_t elements) {
  const DTypeFacts& f = facts(dtype);
  check(elements >= 0 && elements % f.block_elements == 0,
        "row of {}: expected a multiple of {} elements, got {}", f.name, f.block_elements,
        elements);
  int64_t bytes = 0;
  check(!__builtin_mul_overflow(elements / f.block_elements, int64_t{f.block_bytes}, &bytes),
        "row of {}: {} elements do not fit in 63 bits of bytes", f.name, elements);
  return bytes;
}

}  // namespace spb
