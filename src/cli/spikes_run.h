// One reading of a text by a spiking model, and what was seen; everything spb spikes shows.
#pragma once

#include <string>
#include <vector>

#include "cli/activity_recorder.h"
#include "cli/options.h"
#include "cli/spikes_energy.h"
#include "engine/perplexity.h"

namespace spb::cli {

// Statistics are kept apart by those that are set; the others are pooled.
struct Grouping {
  bool layer = false;
  bool site = false;
  bool token_class = false;
};

// Layer -1 and empty names stand for all. Pooled neurons of different layers or sites stay
// different neurons; classes of tokens share theirs.
spike::SiteStatistics group_by(const spike::SiteStatistics& all, const Grouping& grouping);

// All counts of a run in one.
spike::SpikeStatistics pool_all(const spike::SiteStatistics& all);

struct SpikeRun {
  double k = 0;
  engine::Perplexity perplexity;
  spike::SiteStatistics statistics;  // by layer, site and class
  EnergyReport energy;
};

// All that one command found out.
struct SpikesReport {
  std::string model;  // its path
  std::string profile;
  int64_t layers = 0;
  int64_t tokens = 0;
  int64_t window = 0;
  SpikeRun run;                 // with the k of the model
  std::vector<SpikeRun> sweep;  // ascending k; empty unless asked for
};

struct SpikeText {
  std::vector<int32_t> tokens;
  std::vector<TokenClass> classes;
  int64_t window = 0;
};

// The text as tokens with their classes. `special`: recognise special tokens in it.
SpikeText read_tokens(const text::Tokenizer& tokenizer, const std::string& text, int64_t window,
                      bool special);

struct RunSettings {
  model::StateOptions state;
  bool verify_spikes = false;
  spike::EnergyConstants constants;
  std::vector<ActivityRecorder::Tap> taps;
};

// Interrupted error when `stop` is set while it runs.
SpikeRun run_spikes(Context& context, const model::Model& model, const SpikeText& text,
                    const RunSettings& settings, const std::atomic<bool>* stop);

}  // namespace spb::cli
