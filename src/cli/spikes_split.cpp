#include "cli/spikes_split.h"

#include <algorithm>

#include "core/error.h"
#include "core/progress.h"

namespace spb::cli {
namespace {

using model::Site;
using model::SpikeConfig;

constexpr const char* kKeysAndValues = "key, value";

// A row of places that are switched together.
struct Places {
  std::string name;
  std::vector<std::pair<int64_t, Site>> places;
};

// Reads the text with chosen places spiking and the others silenced.
class Probe {
 public:
  Probe(Context& context, const SpikeText& text, const model::StateOptions& state,
        const std::atomic<bool>* stop)
      : context_(context), text_(text), state_(state), stop_(stop) {
    state_.max_context = std::max(state_.max_context, text.window);
    state_.cache_dtype = DType::kF16;  // one that does not round
  }

  void expect(int64_t runs) { progress_.emplace("split", runs, "readings"); }

  engine::Perplexity read(const model::Model& model, const SpikeConfig& spikes) {
    const model::ForwardHooks hooks{nullptr, false, &spikes};
    engine::Perplexity result = engine::measure_perplexity(context_, model, text_.tokens,
                                                           text_.window, state_, {}, stop_, hooks);
    progress_->update(++done_);
    return result;
  }

 private:
  Context& context_;
  const SpikeText& text_;
  model::StateOptions state_;
  const std::atomic<bool>* stop_;
  std::optional<Progress> progress_;
  int64_t done_ = 0;
};

class Split {
 public:
  Split(const model::Model& model, Probe& probe)
      : model_(model),
        own_(*model.config().spikes),
        layers_(model.config().num_layers()),
        probe_(probe) {
    for (int64_t layer = 0; layer < layers_; ++layer) add_places(layer);
    silent_ = with(own_, all_, false);
  }

  // Only rounded keys and values, or all but them.
  SpikeConfig rounded(bool on) const { return with(on ? silent_ : own_, of_site(Site::kKey), on); }
  const SpikeConfig& own() const { return own_; }
  const SpikeConfig& silent() const { return silent_; }

  std::vector<Places> sites() const {
    std::vector<Places> out;
    for (int i = 0; i <= model::kSpikingSites; ++i) {
      const auto site = static_cast<Site>(i);
      Places row{site == Site::kKey ? kKeysAndValues : std::string(name(site)), of_site(site)};
      if (!row.places.empty()) out.push_back(std::move(row));
    }
    return out;
  }

  std::vector<Places> layers() const {
    std::vector<Places> out;
    for (int64_t layer = 0; layer < layers_; ++layer) {
      Places row{fmt::format("layer {}", layer), {}};
      for (const auto& place : all_) {
        if (place.first == layer) row.places.push_back(place);
      }
      if (!row.places.empty()) out.push_back(std::move(row));
    }
    return out;
  }

  SplitPart alone(const Places& row, const engine::Perplexity& basis) {
    SplitPart part{row.name, -1, {}, {}};
    part.alone = measure(with(silent_, row.places, true), basis);
    return part;
  }

  SplitPart both(const Places& row, const engine::Perplexity& basis) {
    SplitPart part = alone(row, basis);
    part.rest = measure(with(own_, row.places, false), basis);
    return part;
  }

 private:
  // Places that do something: where the model spikes, and where keys and values are rounded.
  void add_places(int64_t layer) {
    const model::Layer& l = model_.layer(layer);
    const model::Network& network = l.dense.defined() ? l.dense : l.shared;
    const bool softmax = l.config.has(model::Mixer::kFull) || l.config.has(model::Mixer::kWindow);
    const auto add = [&](Site site, bool there) {
      if (there && own_.at(layer, site) > 0) all_.emplace_back(layer, site);
    };
    add(Site::kMixerInput, l.q.spikes);
    add(Site::kMixerOutput, l.o.spikes);
    add(Site::kQuery, softmax);
    add(Site::kFeedForwardInput, network.gate.spikes);
    add(Site::kFeedForwardOutput, network.down.spikes);
    add(Site::kKey, softmax);
    add(Site::kValue, softmax);
  }

  // kKey stands for keys and values.
  std::vector<std::pair<int64_t, Site>> of_site(Site site) const {
    std::vector<std::pair<int64_t, Site>> out;
    for (const auto& place : all_) {
      const bool pair = site == Site::kKey && place.second == Site::kValue;
      if (place.second == site || pair) out.push_back(place);
    }
    return out;
  }

  SpikeConfig with(SpikeConfig config, const std::vector<std::pair<int64_t, Site>>& places,
                   bool on) const {
    for (const auto& [layer, site] : places) {
      set_k(config, layers_, layer, site, on ? own_.at(layer, site) : 0);
    }
    return config;
  }

  SplitRun measure(const SpikeConfig& spikes, const engine::Perplexity& basis) {
    const engine::Perplexity read = probe_.read(model_, spikes);
    return {read.value(), engine::compare(read, basis)};
  }

  const model::Model& model_;
  SpikeConfig own_;
  int64_t layers_;
  Probe& probe_;
  std::vector<std::pair<int64_t, Site>> all_;
  SpikeConfig silent_;
};

std::vector<Places> cells_of(const std::vector<Places>& sites) {
  std::vector<Places> cells;
  for (const Places& site : sites) {
    for (const auto& [layer, kind] : site.places) {
      if (kind == Site::kValue) continue;  // with its key
      cells.push_back({site.name, {{layer, kind}}});
      if (kind == Site::kKey) cells.back().places.emplace_back(layer, Site::kValue);
    }
  }
  return cells;
}

void add_cause(SpikeSplit& split, const std::string& name, const engine::Perplexity& read,
               const engine::Perplexity& basis) {
  split.causes.push_back({name, -1, {read.value(), engine::compare(read, basis)}, {}});
}

// Returns the reading that parts are compared with: codes without spikes.
engine::Perplexity read_causes(const model::Model& coded, const model::Model* floats,
                               const Split& parts, Probe& probe, SpikeSplit& split) {
  engine::Perplexity codes = probe.read(coded, parts.silent());
  const engine::Perplexity basis = floats != nullptr ? probe.read(*floats, parts.silent()) : codes;
  const auto add = [&](const std::string& cause, const model::Model& model,
                       const SpikeConfig& spikes) {
    add_cause(split, cause, probe.read(model, spikes), basis);
  };
  if (floats != nullptr) {
    add_cause(split, "nothing: float weights, no spikes", basis, basis);
    add_cause(split, "weights: codes alone", codes, basis);
    add("activations: spikes alone", *floats, parts.rounded(false));
    add("keys and values alone", *floats, parts.rounded(true));
    add("spikes, keys and values", *floats, parts.own());
  } else {
    add_cause(split, "nothing: codes without spikes", codes, basis);
    add("activations: spikes alone", coded, parts.rounded(false));
    add("keys and values alone", coded, parts.rounded(true));
  }
  add("all", coded, parts.own());
  split.predictions = basis.predictions;
  return codes;
}

std::unique_ptr<model::Model> load_floats(Context& context, const model::Model& coded,
                                          const SplitRequest& request,
                                          const model::LoadOptions& load) {
  if (request.float_model.empty()) return nullptr;
  model::LoadOptions options = load;
  options.float_weights = true;
  auto floats = model::Model::load(context, request.float_model, options);
  const model::ModelConfig& a = floats->config();
  const model::ModelConfig& b = coded.config();
  check(a.num_layers() == b.num_layers() && a.hidden_size == b.hidden_size &&
            a.vocab_size == b.vocab_size && a.query_size() == b.query_size(),
        "--float: {}: expected the float model of the spiking one ({} layers of {}), got {} of {}",
        printable(request.float_model, 4096), b.num_layers(), b.hidden_size, a.num_layers(),
        a.hidden_size);
  return floats;
}

}  // namespace

void parse_split(const std::vector<std::string>& parts, SplitRequest& request) {
  for (const std::string& part : parts) {
    request.sites |= part == "site";
    request.layers |= part == "layer";
    request.cells |= part == "cell";
  }
}

SpikeSplit run_split(Context& context, const std::string& path, const model::LoadOptions& load,
                     const SpikeText& text, const model::StateOptions& state,
                     const SplitRequest& request, const std::atomic<bool>* stop) {
  model::LoadOptions options = load;
  options.float_products = true;
  options.event_driven = false;
  const auto coded = model::Model::load(context, path, options);
  const auto floats = load_floats(context, *coded, request, options);
  Probe probe(context, text, state, stop);
  Split parts(*coded, probe);
  const std::vector<Places> sites = parts.sites();
  const std::vector<Places> cells = request.cells ? cells_of(sites) : std::vector<Places>();
  const std::vector<Places> layers = parts.layers();
  probe.expect((floats ? 6 : 4) + (request.sites ? 2 * std::ssize(sites) : 0) +
               (request.layers ? 2 * std::ssize(layers) : 0) + std::ssize(cells));
  SpikeSplit split;
  split.float_model = request.float_model;
  split.layers = coded->config().num_layers();
  const engine::Perplexity basis = read_causes(*coded, floats.get(), parts, probe, split);
  for (const Places& site : sites) {
    if (request.sites) split.sites.push_back(parts.both(site, basis));
  }
  for (const Places& layer : layers) {
    if (request.layers) split.by_layer.push_back(parts.both(layer, basis));
  }
  for (const Places& cell : cells) {
    split.cells.push_back(parts.alone(cell, basis));
    split.cells.back().layer = cell.places.front().first;
  }
  return split;
}

}  // namespace spb::cli
