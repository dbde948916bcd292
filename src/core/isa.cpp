#include "core/isa.h"

#include <array>
#include <atomic>

#include "core/error.h"
#include "core/options.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace spb {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"portable", "avx2", "avx512", "amx"};

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool bit(unsigned word, int index) { return ((word >> index) & 1u) != 0; }

// The register state that the operating system saves across context switches (XCR0).
unsigned saved_state() {
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;  // no OSXSAVE
  unsigned eax = 0;
  unsigned edx = 0;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return eax;
}

// Linux gives AMX tile data only to a process that asks for it.
bool request_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_avx2(unsigned state) {
  const Registers one = cpuid(1, 0);
  const Registers seven = cpuid(7, 0);
  const bool fma = bit(one.ecx, 12);
  const bool f16c = bit(one.ecx, 29);
  const bool avx2 = bit(seven.ebx, 5);
  const bool bmi = bit(seven.ebx, 3) && bit(seven.ebx, 8);
  const bool lzcnt = bit(cpuid(0x80000001u, 0).ecx, 5);
  return fma && f16c && avx2 && bmi && lzcnt && (state & 0x6u) == 0x6u;
}

bool has_avx512(unsigned state) {
  const Registers seven = cpuid(7, 0);
  const bool f_dq_bw_vl_cd = bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 30) &&
                             bit(seven.ebx, 31) && bit(seven.ebx, 28);
  const bool vnni = bit(seven.ecx, 11);
  return f_dq_bw_vl_cd && vnni && (state & 0xe6u) == 0xe6u;
}

bool has_amx(unsigned state) {
  const Registers seven = cpuid(7, 0);
  const bool tiles = bit(seven.edx, 24) && bit(seven.edx, 25) && bit(seven.edx, 22);
  const bool avx512_bf16 = bit(cpuid(7, 1).eax, 5);
  return tiles && avx512_bf16 && (state & 0x60000u) == 0x60000u && request_amx();
}

Isa probe() {
  const unsigned state = saved_state();
  if (!has_avx2(state)) return Isa::kPortable;
  if (!has_avx512(state)) return Isa::kAvx2;
  return has_amx(state) ? Isa::kAmx : Isa::kAvx512;
}

#else

Isa probe() { return Isa::kPortable; }

#endif

Isa initial_isa() {
  const std::optional<std::string> wanted = option("SPB_ISA");
  if (!wanted) return detect_isa();
  const std::optional<Isa> level = parse_isa(*wanted);
  check(level.has_value(), "SPB_ISA: expected portable, avx2, avx512 or amx, got '{}'",
        printable(*wanted));
  check(*level <= detect_isa(), "SPB_ISA: this processor offers at most {}, got {}",
        name(detect_isa()), name(*level));
  return *level;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> level = initial_isa();
  return level;
}

}  // namespace

std::string_view name(Isa isa) { return kNames.at(static_cast<size_t>(isa)); }

std::optional<Isa> parse_isa(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Isa>(i);
  }
  return std::nullopt;
}

Isa detect_isa() {
  static const Isa level = probe();
  return level;
}

Isa isa() { return current().load(std::memory_order_relaxed); }

void limit_isa(Isa isa) {
  check(isa <= detect_isa(), "limit_isa: this processor offers at most {}, got {}",
        name(detect_isa()), name(isa));
  current().store(isa, std::memory_order_relaxed);
}

}  // namespace spb
