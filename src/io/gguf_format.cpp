#include "io/gguf_format.h"

#include <array>

#include "core/error.h"

namespace spb::io {
namespace {

constexpr std::array<std::string_view, kNumGgufTypes> kTypeNames = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

struct GgmlType {
  uint32_t number;
  std::string_view name;
  std::optional<DType> dtype;
};

constexpr std::array kGgmlTypes = {
    GgmlType{0, "F32", DType::kF32},
    GgmlType{1, "F16", DType::kF16},
    GgmlType{2, "Q4_0", DType::kQ4_0},
    GgmlType{3, "Q4_1", DType::kQ4_1},
    GgmlType{6, "Q5_0", DType::kQ5_0},
    GgmlType{7, "Q5_1", DType::kQ5_1},
    GgmlType{8, "Q8_0", DType::kQ8_0},
    GgmlType{9, "Q8_1", {}},
    GgmlType{10, "Q2_K", {}},
    GgmlType{11, "Q3_K", {}},
    GgmlType{12, "Q4_K", DType::kQ4_K},
    GgmlType{13, "Q5_K", DType::kQ5_K},
    GgmlType{14, "Q6_K", DType::kQ6_K},
    GgmlType{15, "Q8_K", {}},
    GgmlType{16, "IQ2_XXS", {}},
    GgmlType{17, "IQ2_XS", {}},
    GgmlType{18, "IQ3_XXS", {}},
    GgmlType{19, "IQ1_S", {}},
    GgmlType{20, "IQ4_NL", {}},
    GgmlType{21, "IQ3_S", {}},
    GgmlType{22, "IQ2_S", {}},
    GgmlType{23, "IQ4_XS", {}},
    GgmlType{24, "I8", DType::kI8},
    GgmlType{25, "I16", {}},
    GgmlType{26, "I32", DType::kI32},
    GgmlType{27, "I64", DType::kI64},
    GgmlType{28, "F64", {}},
    GgmlType{29, "IQ1_M", {}},
    GgmlType{30, "BF16", DType::kBF16},
    GgmlType{34, "TQ1_0", {}},
    GgmlType{35, "TQ2_0", {}},
    GgmlType{39, "MXFP4", {}},
};

const GgmlType* find_type(uint32_t number) {
  for (const GgmlType& type : kGgmlTypes) {
    if (type.number == number) return &type;
  }
  return nullptr;
}

}  // namespace

std::string_view name(GgufType type) { return kTypeNames.at(static_cast<size_t>(type)); }

std::optional<DType> dtype_of_ggml_type(uint32_t type) {
  const GgmlType* found = find_type(type);
  return found == nullptr ? std::nullopt : found->dtype;
}

uint32_t ggml_type_of(DType dtype) {
  for (const GgmlType& type : kGgmlTypes) {
    if (type.dtype == dtype) return type.number;
  }
  fail(ErrorKind::kUsage, "gguf: dtype: expected one that GGUF can hold, got {}", spb::name(dtype));
}

std::string ggml_type_name(uint32_t type) {
  const GgmlType* found = find_type(type);
  return found == nullptr ? fmt::format("number {}", type) : std::string(found->name);
}

}  // namespace spb::io
