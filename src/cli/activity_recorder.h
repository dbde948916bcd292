// ActivityRecorder: gathers what a model's spikes look like while it runs.
//
// Spike counts go into statistics by layer, site and class of token; every site, spiking or not,
// has its rows and calls counted, which estimates of its cost need. Nothing is kept of single
// counts; who wants them asks for a tap. Costs some nanoseconds for each count.
#pragma once

#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "core/context.h"
#include "engine/perplexity.h"
#include "model/activity.h"
#include "spike/statistics/statistics.h"

namespace spb::cli {

enum class TokenClass {
  kFirst,    // position 0 of a sequence: what everything attends to fires unlike the rest
  kSpecial,  // a special token of the tokenizer
  kText,
};

std::string_view name(TokenClass token_class);  // "first", "special", "text"

// The counts of one site in one call.
struct SiteCounts {
  int64_t layer = 0;
  model::Site site = model::Site::kMixerInput;
  const spike::SpikeCounts* counts = nullptr;
  int64_t rows_per_token = 1;  // heads where every head has a threshold of its own
  engine::TextChunk tokens;    // of the rows
};

struct SiteTraffic {
  int64_t rows = 0;
  int64_t calls = 0;
};

class ActivityRecorder : public model::ActivityObserver {
 public:
  using Tap = std::function<void(const SiteCounts&)>;
  using Traffic = std::map<std::pair<int64_t, model::Site>, SiteTraffic>;

  // `context` is the one that forward() runs with.
  explicit ActivityRecorder(Context& context) : context_(context) {}

  // Before the first call: what the calls of forward() will read, call i the tokens of chunks[i],
  // whose classes stand at the tokens' places in `classes`. Calls beyond the plan count as text.
  void expect(std::vector<engine::TextChunk> chunks, std::vector<TokenClass> classes);
  // Called with the counts of every site.
  void add_tap(Tap tap) { taps_.push_back(std::move(tap)); }

  void on_activations(int64_t layer, model::Site site, ConstTensorView x) override;
  void on_spikes(int64_t layer, model::Site site, const spike::SpikeCounts& counts) override;

  const spike::SiteStatistics& statistics() const { return statistics_; }
  const Traffic& traffic() const { return traffic_; }
  const std::vector<engine::TextChunk>& calls() const { return calls_; }
  int64_t tokens() const { return tokens_; }

 private:
  void begin_call(int64_t rows);
  void add_rows(SiteCounts site);

  Context& context_;
  std::vector<engine::TextChunk> plan_;
  std::vector<TokenClass> classes_;
  std::vector<Tap> taps_;
  std::vector<engine::TextChunk> calls_;  // made so far; the last one may be in progress
  int64_t tokens_ = 0;
  spike::SiteStatistics statistics_;
  Traffic traffic_;
};

}  // namespace spb::cli
