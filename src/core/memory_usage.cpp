#include "core/memory_usage.h"

#include <cstdio>
#include <cstring>

namespace spb {
namespace {

// "VmRSS:     1234 kB" -> bytes, when the line begins with `key`.
void read_field(const char* line, const char* key, int64_t& bytes) {
  const size_t length = std::strlen(key);
  long long kilobytes = 0;
  if (std::strncmp(line, key, length) == 0 && std::sscanf(line + length, "%lld", &kilobytes) == 1) {
    bytes = kilobytes * 1024;
  }
}

}  // namespace

MemoryUsage memory_usage() {
  MemoryUsage usage;
  std::FILE* file = std::fopen("/proc/self/status", "r");
  if (file == nullptr) return usage;
  char line[256];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    read_field(line, "VmRSS:", usage.resident);
    read_field(line, "RssAnon:", usage.anonymous);
    read_field(line, "VmHWM:", usage.peak);
  }
  std::fclose(file);
  return usage;
}

}  // namespace spb
