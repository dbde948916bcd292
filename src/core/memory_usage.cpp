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

// Calls `read` for every line of a file of /proc; nothing where it does not exist.
template <typename Read>
void for_each_line(const char* path, Read read) {
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return;
  char line[256];
  while (std::fgets(line, sizeof line, file) != nullptr) read(line);
  std::fclose(file);
}

}  // namespace

MemoryUsage memory_usage() {
  MemoryUsage usage;
  for_each_line("/proc/self/status", [&](const char* line) {
    read_field(line, "VmRSS:", usage.resident);
    read_field(line, "RssAnon:", usage.anonymous);
    read_field(line, "RssFile:", usage.file);
    read_field(line, "VmHWM:", usage.peak);
  });
  return usage;
}

int64_t available_memory() {
  int64_t bytes = 0;
  for_each_line("/proc/meminfo",
                [&](const char* line) { read_field(line, "MemAvailable:", bytes); });
  return bytes;
}

}  // namespace spb
