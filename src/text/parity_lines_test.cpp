#include "text/parity_lines_test.h"

#include <array>
#include <fstream>
#include <iterator>
#include <sstream>

#include "core/test_source.h"
#include "text/utf8.h"

namespace spb::text {
namespace {

uint64_t below(Rng& rng, uint64_t bound) { return rng.next() % bound; }

std::string unescape(const std::string& line) {
  const std::map<char, char> simple = {
      {'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'s', ' '}, {'\\', '\\'}};
  std::string out;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\') {
      out += line[i];
    } else if (line[++i] == 'x') {
      out += static_cast<char>(std::stoi(line.substr(i + 1, 2), nullptr, 16));
      i += 2;
    } else {
      out += simple.at(line[i]);
    }
  }
  return out;
}

struct Block {
  char32_t first;
  uint64_t count;
};
constexpr std::array<Block, 24> kBlocks = {{
    {0x20, 95},    {0xa0, 96},    {0x100, 128},   {0x300, 112},  {0x370, 144},  {0x400, 256},
    {0x590, 112},  {0x600, 256},  {0x900, 128},   {0xe00, 128},  {0x1100, 256}, {0x2000, 112},
    {0x2190, 112}, {0x3040, 192}, {0x4e00, 512},  {0xac00, 512}, {0xf900, 64},  {0xfe00, 48},
    {0xff00, 240}, {0x1f600, 80}, {0x1f900, 256}, {0x20000, 64}, {0xe0020, 96}, {0x40000, 4},
}};

std::string digits(Rng& rng) {
  std::string out;
  for (uint64_t left = 1 + below(rng, 9); left > 0; --left) {
    out += static_cast<char>('0' + below(rng, 10));
  }
  return out;
}

std::string character_run(Rng& rng) {
  constexpr std::string_view kCharacters = "a0 =-\n.!x\t";
  const char character = kCharacters[below(rng, kCharacters.size())];
  return std::string(1 + below(rng, 40), character);
}

std::string random_characters(Rng& rng) {
  std::string out;
  for (uint64_t left = 1 + below(rng, 3); left > 0; --left) {
    const Block& block = kBlocks[below(rng, kBlocks.size())];
    append_utf8(out, block.first + static_cast<char32_t>(below(rng, block.count)));
  }
  return out;
}

std::string random_bytes(Rng& rng) {
  std::string out;
  for (uint64_t left = 1 + below(rng, 4); left > 0; --left) {
    out += static_cast<char>(128 + below(rng, 128));
  }
  return out;
}

}  // namespace

std::string fixture_path(const std::string& name) {
  return test::source_root() + "/tests/fixtures/text/" + name;
}

std::string read_fixture(const std::string& name) {
  std::ifstream file(fixture_path(name), std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

LineSource::LineSource() {
  std::istringstream file(read_fixture("fragments.txt"));
  std::string section;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.starts_with("# ")) continue;
    if (line.front() == '[' && line.back() == ']') {
      section = line.substr(1, line.size() - 2);
    } else {
      sections_[section].push_back(unescape(line));
    }
  }
}

const std::string& LineSource::pick(Rng& rng, const char* section) const {
  const auto& fragments = sections_.at(section);
  return fragments[below(rng, fragments.size())];
}

std::string LineSource::repeat(Rng& rng, const char* section, uint64_t most) const {
  std::string out;
  for (uint64_t left = 1 + below(rng, most); left > 0; --left) out += pick(rng, section);
  return out;
}

std::string LineSource::fragment(Rng& rng) const {
  const uint64_t kind = below(rng, 24);
  if (kind < 7) return pick(rng, "english");
  if (kind < 10) return pick(rng, "chinese");
  if (kind < 13) return pick(rng, "code");
  if (kind == 13) return pick(rng, "emoji");
  if (kind < 16) return pick(rng, "scripts");
  if (kind == 16) return repeat(rng, "marks", 3);
  if (kind < 19) return repeat(rng, "spaces", 5);
  if (kind == 19) return digits(rng);
  if (kind == 20) return character_run(rng);
  if (kind == 21) return random_characters(rng);
  if (kind == 22) return random_bytes(rng);
  return pick(rng, below(rng, 2) == 1 ? "special" : "controls");
}

std::string LineSource::line(uint64_t index) const {
  Rng rng(0x5b1ce + index);
  std::string out;
  for (uint64_t left = 1 + below(rng, 10); left > 0; --left) {
    out += fragment(rng);
    if (below(rng, 2) == 1) out += ' ';
  }
  // Some lines end inside a character.
  if (below(rng, 8) == 0) out.resize(below(rng, out.size()));
  return out;
}

uint32_t hash_ids(std::span<const int32_t> ids) {
  uint32_t hash = 0x811c9dc5u;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ ((static_cast<uint32_t>(id) >> shift) & 0xffu)) * 0x01000193u;
    }
  }
  return hash;
}

}  // namespace spb::text
