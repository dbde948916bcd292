#include "cli/spikes_run.h"

#include <algorithm>

#include "core/progress.h"

namespace spb::cli {

spike::SiteStatistics group_by(const spike::SiteStatistics& all, const Grouping& grouping) {
  // Classes of the same neurons first, then neurons of other places.
  spike::SiteStatistics merged;
  for (const auto& [key, statistics] : all) {
    spike::SiteKey to = key;
    if (!grouping.token_class) to.token_class.clear();
    merged[to].merge(statistics);
  }
  spike::SiteStatistics groups;
  for (const auto& [key, statistics] : merged) {
    spike::SiteKey to = key;
    if (!grouping.layer) to.layer = -1;
    if (!grouping.site) to.site.clear();
    groups[to].pool(statistics);
  }
  return groups;
}

spike::SpikeStatistics pool_all(const spike::SiteStatistics& all) {
  const spike::SiteStatistics pooled = group_by(all, {});
  return pooled.empty() ? spike::SpikeStatistics() : pooled.begin()->second;
}

SpikeText read_tokens(const text::Tokenizer& tokenizer, const std::string& text, int64_t window,
                      bool special) {
  SpikeText out;
  out.window = window;
  out.tokens = tokenizer.encode(text, {.parse_special = special, .add_bos = tokenizer.wants_bos()});
  for (size_t i = 0; i < out.tokens.size(); ++i) {
    const bool first = window > 0 && static_cast<int64_t>(i) % window == 0;
    out.classes.push_back(first                                 ? TokenClass::kFirst
                          : tokenizer.is_special(out.tokens[i]) ? TokenClass::kSpecial
                                                                : TokenClass::kText);
  }
  return out;
}

SpikeRun run_spikes(Context& context, const model::Model& model, const SpikeText& text,
                    const RunSettings& settings, const std::atomic<bool>* stop) {
  ActivityRecorder recorder(context);
  const auto total = static_cast<int64_t>(text.tokens.size());
  model::StateOptions state = settings.state;
  state.max_context = std::max(state.max_context, text.window);
  recorder.expect(engine::text_chunks(total, text.window, state.max_chunk), text.classes);
  for (const ActivityRecorder::Tap& tap : settings.taps) recorder.add_tap(tap);
  const double k = model.config().spikes->k;
  Progress progress(fmt::format("k = {:g}", k), total, "tokens");
  SpikeRun run;
  run.k = k;
  run.perplexity = engine::measure_perplexity(context, model, text.tokens, text.window, state,
                                              [&](int64_t done, int64_t) { progress.update(done); },
                                              stop, {&recorder, settings.verify_spikes});
  run.energy = estimate_energy(model, recorder, settings.constants);
  run.statistics = recorder.statistics();
  return run;
}

}  // namespace spb::cli
