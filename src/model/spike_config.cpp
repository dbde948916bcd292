#include "model/spike_config.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>

#include "core/error.h"

namespace spb::model {
namespace {

constexpr std::array<std::string_view, kSites> kSiteNames = {
    "mixer_in", "mixer_out", "query", "ffn_in", "ffn_out", "key", "value"};

bool is_k(double k) { return k >= 1e-3 && k <= 1e6; }

std::optional<int64_t> parse_layer(std::string_view text) {
  int64_t layer = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  const bool whole = error == std::errc{} && rest == text.data() + text.size();
  return whole && layer >= 0 ? std::optional(layer) : std::nullopt;
}

// "3" or "0-3"
bool parse_layers(std::string_view text, SiteRule& rule) {
  const size_t dash = text.find('-');
  const auto first = parse_layer(text.substr(0, dash));
  const auto last = dash == std::string_view::npos ? first : parse_layer(text.substr(dash + 1));
  if (!first || !last || *last < *first) return false;
  rule.first_layer = *first;
  rule.last_layer = *last;
  return true;
}

bool parse_places(std::string_view text, SiteRule& rule) {
  if (const size_t colon = text.find(':'); colon != std::string_view::npos) {
    if (!parse_layers(text.substr(0, colon), rule)) return false;
    text.remove_prefix(colon + 1);
  }
  if (text == "all") return true;
  rule.site = parse_site(text);
  return rule.site && static_cast<int>(*rule.site) < kSpikingSites;
}

bool parse_k(const std::string& text, double& k) {
  if (text == "off") return true;  // 0
  char* end = nullptr;
  k = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && is_k(k);
}

}  // namespace

std::string_view name(Site site) { return kSiteNames.at(static_cast<size_t>(site)); }

std::optional<Site> parse_site(std::string_view name) {
  const auto found = std::find(kSiteNames.begin(), kSiteNames.end(), name);
  if (found == kSiteNames.end()) return std::nullopt;
  return static_cast<Site>(found - kSiteNames.begin());
}

std::vector<SiteRule> parse_site_rules(const std::string& list, const std::string& option) {
  std::vector<SiteRule> rules;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) {
    SiteRule rule;
    const size_t equals = item.find('=');
    check(
        equals != std::string::npos && parse_places(item.substr(0, equals), rule) &&
            parse_k(item.substr(equals + 1), rule.k),
        "{}: expected [LAYERS:]SITE=K such as ffn_in=4.5, query=off or 0-3:all=6 (sites mixer_in, "
        "mixer_out, query, ffn_in, ffn_out, all; k from 0.001 to 1000000), got '{}'",
        option, printable(item));
    rules.push_back(rule);
  }
  return rules;
}

void set_k(SpikeConfig& config, int64_t layers, int64_t layer, Site site, double k) {
  std::vector<double>& own = config.site_k[static_cast<size_t>(site)];
  if (own.empty()) own.assign(static_cast<size_t>(layers), config.k);
  own[static_cast<size_t>(layer)] = k;
}

void apply_rules(std::span<const SiteRule> rules, int64_t layers, SpikeConfig& config) {
  constexpr int64_t kLast = std::numeric_limits<int64_t>::max();
  for (const SiteRule& rule : rules) {
    check(rule.k == 0 || is_k(rule.k), "spike k: expected 0, or 0.001 to 1000000, got {}", rule.k);
    const int64_t last = rule.last_layer == kLast ? layers - 1 : rule.last_layer;
    check(rule.first_layer >= 0 && last < layers && rule.first_layer <= last,
          "spike k: layers: expected 0 to {}, got {} to {}", layers - 1, rule.first_layer, last);
    for (int i = 0; i < kSpikingSites; ++i) {
      const auto site = static_cast<Site>(i);
      if (rule.site && *rule.site != site) continue;
      for (int64_t layer = rule.first_layer; layer <= last; ++layer) {
        set_k(config, layers, layer, site, rule.k);
      }
    }
  }
}

void check_spikes(const SpikeConfig& config, int64_t layers, const std::string& source) {
  check_data(is_k(config.k), "{}: spike k: expected 0.001 to 1e+06, got {:g}", source, config.k);
  for (int i = 0; i < kSites; ++i) {
    const std::vector<double>& own = config.site_k[static_cast<size_t>(i)];
    if (own.empty()) continue;
    const std::string_view site = name(static_cast<Site>(i));
    check_data(i < kSpikingSites, "{}: spike k: site {} has no spikes", source, site);
    check_data(static_cast<int64_t>(own.size()) == layers,
               "{}: spike k: site {}: expected one for each of {} layers, got {}", source, site,
               layers, own.size());
    for (const double k : own) {
      check_data(k == 0 || is_k(k), "{}: spike k: site {}: expected 0, or 0.001 to 1e+06, got {:g}",
                 source, site, k);
    }
  }
}

}  // namespace spb::model
