#include "cli/activity_recorder.h"

#include <array>

#include "core/error.h"

namespace spb::cli {

std::string_view name(TokenClass token_class) {
  static constexpr std::array<std::string_view, 3> kNames = {"first", "special", "text"};
  return kNames.at(static_cast<size_t>(token_class));
}

void ActivityRecorder::expect(std::vector<engine::TextChunk> chunks,
                              std::vector<TokenClass> classes) {
  plan_ = std::move(chunks);
  classes_ = std::move(classes);
}

// Every call begins with the inputs of the first layer's mixers.
void ActivityRecorder::on_activations(int64_t layer, model::Site site, ConstTensorView x) {
  const int64_t rows = x.shape()[0];
  if (layer == 0 && site == model::Site::kMixerInput) begin_call(rows);
  SiteTraffic& traffic = traffic_[{layer, site}];
  traffic.rows += rows;
  ++traffic.calls;
}

void ActivityRecorder::begin_call(int64_t rows) {
  engine::TextChunk call{tokens_, rows, tokens_};
  if (calls_.size() < plan_.size()) call = plan_[calls_.size()];
  check(call.count == rows, "activity: rows: expected {} in this call, got {}", call.count, rows);
  calls_.push_back(call);
  tokens_ += rows;
}

void ActivityRecorder::on_spikes(int64_t layer, model::Site site,
                                 const spike::SpikeCounts& counts) {
  const int64_t rows = counts.core.shape()[0];
  SiteCounts seen{layer, site, &counts, 1, calls_.back()};
  if (site == model::Site::kQuery) seen.rows_per_token = rows / seen.tokens.count;
  // Of the last layer's later sites only the last tokens of the call have rows.
  const int64_t missing = seen.tokens.count - rows / seen.rows_per_token;
  seen.tokens.first += missing;
  seen.tokens.position += missing;
  seen.tokens.count -= missing;
  for (const Tap& tap : taps_) tap(seen);
  add_rows(seen);
}

// Consecutive tokens of one class are added at once.
void ActivityRecorder::add_rows(SiteCounts site) {
  const auto class_of = [&](int64_t token) {
    const auto index = static_cast<size_t>(token);
    return index < classes_.size() ? classes_[index] : TokenClass::kText;
  };
  const int64_t end = site.tokens.first + site.tokens.count;
  for (int64_t begin = site.tokens.first; begin < end;) {
    int64_t next = begin + 1;
    while (next < end && class_of(next) == class_of(begin)) ++next;
    const spike::SiteKey key{static_cast<int32_t>(site.layer), std::string(model::name(site.site)),
                             std::string(name(class_of(begin)))};
    statistics_[key].add(context_, *site.counts, (begin - site.tokens.first) * site.rows_per_token,
                         (next - begin) * site.rows_per_token);
    begin = next;
  }
}

}  // namespace spb::cli
