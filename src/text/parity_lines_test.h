// The lines of the tokenizer parity test, drawn from tests/fixtures/text/fragments.txt exactly as
// tools/make_golden/tokenizer_lines.py draws them.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/rng.h"

namespace spb::text {

std::string fixture_path(const std::string& name);  // in tests/fixtures/text
std::string read_fixture(const std::string& name);

class LineSource {
 public:
  LineSource();
  std::string line(uint64_t index) const;  // bytes, not always UTF-8

 private:
  const std::string& pick(Rng& rng, const char* section) const;
  std::string repeat(Rng& rng, const char* section, uint64_t most) const;
  std::string fragment(Rng& rng) const;

  std::map<std::string, std::vector<std::string>> sections_;
};

uint32_t hash_ids(std::span<const int32_t> ids);  // FNV-1a over their little-endian bytes

}  // namespace spb::text
