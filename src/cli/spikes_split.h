// The split: what each part of a spiking model costs in perplexity, alone and as the rest's last
// missing part.
//
// One model in float products, read once for every part with other places silenced. All losses are
// relative: perplexity / perplexity of the basis - 1, with the standard error of paired
// differences (engine/perplexity.h). A part is measured "alone" (nothing else spikes or is rounded)
// and as "the rest" (everything but it); losses of parts need not add up.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/spikes_pictures.h"
#include "cli/spikes_run.h"
#include "view/table.h"

namespace spb::cli {

// Which parts are told apart.
struct SplitRequest {
  bool sites = false;
  bool layers = false;
  bool cells = false;       // each site of each layer, alone only
  std::string float_model;  // the model before its weights became codes; may be empty

  bool wanted() const { return sites || layers || cells; }
};

// "site,layer,cell". Usage error naming `option`.
void parse_split(const std::vector<std::string>& parts, SplitRequest& request);

struct SplitRun {
  double perplexity = 0;
  engine::PerplexityChange loss;
};

struct SplitPart {
  std::string name;    // "ffn_in", "layer 3"
  int64_t layer = -1;  // of a cell
  SplitRun alone;
  std::optional<SplitRun> rest;  // everything but this part; cells have none
};

struct SpikeSplit {
  std::string float_model;  // empty: codes without spikes are the basis of everything
  int64_t layers = 0;
  int64_t predictions = 0;
  std::vector<SplitPart> causes;  // weights, spikes, keys and values, all; the basis comes first
  std::vector<SplitPart> sites;   // their basis is codes without spikes
  std::vector<SplitPart> by_layer;
  std::vector<SplitPart> cells;  // site by site
};

// `load` is how the model was loaded. Usage error when the float model is a different one.
SpikeSplit run_split(Context& context, const std::string& path, const model::LoadOptions& load,
                     const SpikeText& text, const model::StateOptions& state,
                     const SplitRequest& request, const std::atomic<bool>* stop);

// The parts that cost most first.
std::vector<view::Table> split_tables(const SpikeSplit& split);
nlohmann::json to_json(const SpikeSplit& split);
// part,layer,site,run,perplexity,loss,standard_error: one line for each run.
std::string to_csv(const SpikeSplit& split);
// Layer by site, of the cells; none without them.
std::optional<NamedPicture> split_picture(const SpikeSplit& split);

}  // namespace spb::cli
