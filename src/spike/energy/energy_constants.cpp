#include <array>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "spike/energy/energy.h"

namespace spb::spike {
namespace {

struct Constant {
  std::string_view name;
  double EnergyConstants::*value;
};

constexpr std::array<Constant, 5> kConstants = {{
    {"fp16_mac", &EnergyConstants::fp16_mac},
    {"int8_mac", &EnergyConstants::int8_mac},
    {"int8_add", &EnergyConstants::int8_add},
    {"dram_byte", &EnergyConstants::dram_byte},
    {"sram_byte", &EnergyConstants::sram_byte},
}};
static_assert(sizeof(EnergyConstants) == kConstants.size() * sizeof(double), "one is not listed");

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

double parse_number(std::string_view text, const std::string& where) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  check_data(error == std::errc() && stop == end && std::isfinite(value) && value >= 0,
             "{}: expected a number of picojoules, 0 or more, got '{}'", where, printable(text));
  return value;
}

// The number of the constant that a line names.
size_t parse_name(std::string_view text, const std::string& where) {
  for (size_t i = 0; i < kConstants.size(); ++i) {
    if (kConstants[i].name == text) return i;
  }
  fail(ErrorKind::kData,
       "{}: expected fp16_mac, int8_mac, int8_add, dram_byte or sram_byte, got '{}'", where,
       printable(text));
}

}  // namespace

EnergyConstants parse_energy_constants(std::string_view text, std::string_view source) {
  EnergyConstants constants;
  std::array<bool, kConstants.size()> seen = {};
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    line = trim(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const std::string where = fmt::format("{}: line {}", source, number);
    const size_t equals = line.find('=');
    check_data(equals != std::string_view::npos, "{}: expected 'name = number', got '{}'", where,
               printable(line));
    const size_t i = parse_name(trim(line.substr(0, equals)), where);
    check_data(!seen[i], "{}: {}: expected it once, got it again", where, kConstants[i].name);
    seen[i] = true;
    constants.*kConstants[i].value = parse_number(trim(line.substr(equals + 1)), where);
  }
  return constants;
}

}  // namespace spb::spike
