// Instruction sets of the processor, found at run time.
//
// Kernels are compiled once per level and chosen here, so one binary runs everywhere and never
// executes an instruction the processor or the operating system does not support. A processor that
// is not x86-64 runs the portable level, which is written in vector extensions of the compiler.
#pragma once

#include <optional>
#include <string_view>

namespace spb {

enum class Isa {
  kPortable,  // what the compiler assumes for the target
  kAvx2,      // AVX2, FMA, F16C, BMI2 (x86-64-v3)
  kAvx512,    // AVX-512 F, BW, DQ, VL and VNNI
  kAmx,       // kAvx512 and AVX512-BF16, AMX tiles with int8 and bf16 products
};

std::string_view name(Isa isa);
std::optional<Isa> parse_isa(std::string_view name);

// The best level of this machine. Asks the kernel for permission to use AMX tiles where needed.
Isa detect_isa();

// The level in use: detect_isa(), or a lower one set by limit_isa().
Isa isa();

// Restricts the level (option SPB_ISA, tests). Usage error if the machine does not offer it.
void limit_isa(Isa isa);

// Picks the variant of a kernel for the level in use.
template <typename T>
const T& select_isa(const T& portable, const T& avx2, const T& avx512) {
  switch (isa()) {
    case Isa::kAmx:
    case Isa::kAvx512: return avx512;
    case Isa::kAvx2: return avx2;
    case Isa::kPortable: return portable;
  }
  return portable;
}

}  // namespace spb
