// spb spikes: what the spikes of a model look like while it reads a text.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <sstream>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/spikes_data.h"
#include "cli/spikes_pictures.h"
#include "cli/spikes_run.h"
#include "cli/spikes_split.h"
#include "cli/spikes_tables.h"
#include "core/error.h"
#include "io/atomic_file.h"
#include "model/open_model.h"
#include "view/nir/nir_events.h"
#include "view/spike_events.h"

namespace spb::cli {
namespace {

struct SpikesOptions {
  ModelOptions model;
  StateFlags state;
  std::string text;
  std::string window = "512";
  bool special = false;
  std::string k;
  std::vector<std::string> by;
  bool all_figures = false;
  std::string constants;
  bool json = false;
  std::string csv;
  std::string raster;
  std::string neurons;
  int64_t raster_tokens = 32;
  std::string coding = "bitwise-bidirectional";
  bool lowest_bit_first = false;
  std::string svg;
  std::string html;
  std::string events;
  std::string nir;
  std::vector<std::string> split;
  std::string split_csv;
  std::string float_model;

  bool pictures() const { return !svg.empty() || !html.empty(); }
};

RasterRequest raster_request(const SpikesOptions& options) {
  RasterRequest request;
  if (!options.raster.empty()) parse_place(options.raster, request);
  if (!options.neurons.empty()) parse_neurons(options.neurons, request);
  request.tokens = options.raster_tokens;
  request.coding = *spike::parse_coding(options.coding);
  if (options.lowest_bit_first) request.order = spike::BitOrder::kLeastSignificantFirst;
  return request;
}

void write_text(const std::string& path, const std::string& text) {
  io::write_file(path, std::as_bytes(std::span(text)));
}

// "2,2.5,3" ascending and without repetition.
std::vector<double> parse_ks(const std::string& list) {
  std::vector<double> ks;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) {
    char* end = nullptr;
    const double k = std::strtod(item.c_str(), &end);
    check(!item.empty() && *end == '\0' && k >= 1e-3 && k <= 1e6,
          "--k: expected numbers from 0.001 to 1000000 separated by commas, got '{}'",
          printable(list));
    ks.push_back(k);
  }
  std::sort(ks.begin(), ks.end());
  ks.erase(std::unique(ks.begin(), ks.end()), ks.end());
  return ks;
}

Grouping grouping_of(const SpikesOptions& options) {
  Grouping grouping;
  for (const std::string& by : options.by) {
    grouping.layer |= by == "layer";
    grouping.site |= by == "site";
    grouping.token_class |= by == "class";
  }
  return options.by.empty() ? Grouping{true, true, true} : grouping;
}

// Loads the model once for each k; nothing of it is kept in between.
class Reading {
 public:
  Reading(const SpikesOptions& options, const std::atomic<bool>* stop)
      : options_(options), stop_(stop), context_(options.model.make_context()) {
    settings_.state = options.state.state_options();
    settings_.verify_spikes = options.model.verify_spikes;
    if (!options.constants.empty()) {
      settings_.constants =
          spike::parse_energy_constants(read_file(options.constants), options.constants);
    }
  }

  // Taps see the counts of the model's own k.
  void add_tap(ActivityRecorder::Tap tap) { settings_.taps.push_back(std::move(tap)); }

  SpikesReport run(const std::vector<double>& ks) {
    SpikesReport report;
    report.model = options_.model.path;
    report.profile = options_.model.profile;
    report.run = run_with({}, &report);
    settings_.taps.clear();
    for (const double k : ks) {
      report.sweep.push_back(k == report.run.k ? report.run : run_with(k, nullptr));
    }
    return report;
  }

  // After run().
  std::optional<SpikeSplit> split() {
    SplitRequest request;
    request.float_model = options_.float_model;
    parse_split(options_.split, request);
    if (!request.wanted()) return std::nullopt;
    return run_split(context_, options_.model.path, options_.model.load_options(), text_,
                     settings_.state, request, stop_);
  }

 private:
  SpikeRun run_with(std::optional<double> k, SpikesReport* first) {
    model::LoadOptions load = options_.model.load_options();
    load.spike_k = k;
    const engine::TextModel model = engine::load_text_model(context_, options_.model.path, load);
    if (first != nullptr) {
      const int64_t window = parse_count(options_.window, "--window");
      text_ =
          read_tokens(model.need_tokenizer(), read_file(options_.text), window, options_.special);
      first->layers = model.model->config().num_layers();
      first->tokens = std::ssize(text_.tokens);
      first->window = window;
    }
    return run_spikes(context_, *model.model, text_, settings_, stop_);
  }

  const SpikesOptions& options_;
  const std::atomic<bool>* stop_;
  Context context_;
  RunSettings settings_;
  SpikeText text_;
};

void print_table(const view::Table& table) { fmt::print("\n{}", view::to_text(table)); }

void print_statistics(const SpikesReport& report, const SpikesOptions& options) {
  const spike::SiteStatistics& all = report.run.statistics;
  if (options.all_figures || !options.by.empty()) {
    const Grouping grouping =
        options.by.empty() ? Grouping{false, true, false} : grouping_of(options);
    const spike::SiteStatistics groups = group_by(all, grouping);
    if (options.all_figures) {
      for (const view::Table& table : figure_tables(groups)) print_table(table);
      return;
    }
    print_table(count_table("Spike counts s", groups));
    print_table(sparsity_table("Sparsity, firing rates, timesteps", groups));
    return;
  }
  spike::SiteStatistics sites = group_by(all, {false, true, false});
  sites[{-1, "", ""}] = pool_all(all);
  print_table(count_table("Spike counts s by site, all layers", sites));
  print_table(sparsity_table("Sparsity, firing rates, timesteps", sites));
  print_table(count_table("By class of token", group_by(all, {false, false, true})));
  print_table(count_table("By layer, all sites", group_by(all, {true, false, false})));
}

void print_report(const SpikesReport& report, const SpikesOptions& options) {
  fmt::print("{}: {} layers, profile {}, k = {:g}\n", printable(report.model, 4096), report.layers,
             report.profile, report.run.k);
  fmt::print("{} tokens in windows of {}; perplexity {:.4f} +- {:.4f} over {} predictions\n",
             report.tokens, report.window, report.run.perplexity.value(),
             report.run.perplexity.standard_error(), report.run.perplexity.predictions);
  print_statistics(report, options);
  print_table(active_table(report.run.statistics));
  print_table(operations_table(report.run.energy));
  print_table(energy_table(report.run.energy, true));
  print_table(energy_table(report.run.energy, false));
  if (!report.sweep.empty()) print_table(sweep_table(report.sweep));
}

// Writes every count of the run to the files that are wanted; they appear when all are there.
class EventTap {
 public:
  EventTap(const SpikesOptions& options, double k) {
    if (!options.events.empty()) file_.emplace(options.events, options.model.path, k);
    if (!options.nir.empty()) nir_.emplace(options.nir);
  }

  void operator()(const SiteCounts& seen) {
    const view::SpikeBlock block{seen.layer, std::string(name(seen.site)), seen.rows_per_token,
                                 seen.tokens.first, seen.tokens.position};
    if (file_) file_->write(block, *seen.counts);
    if (nir_) nir_->write(block, *seen.counts);
  }
  void finish() {
    if (file_) file_->finish();
    if (nir_) nir_->finish();
  }

 private:
  std::optional<view::SpikeEventWriter> file_;
  std::optional<view::NirEventWriter> nir_;
};

void write_pictures(const SpikesOptions& options, const SpikesReport& report,
                    const view::Raster& raster, const std::optional<SpikeSplit>& split) {
  std::vector<NamedPicture> pictures = draw_pictures(report, raster);
  std::vector<view::Table> tables;
  if (split) {
    tables = split_tables(*split);
    if (auto picture = split_picture(*split)) pictures.push_back(std::move(*picture));
  }
  if (!options.svg.empty()) {
    std::error_code error;
    std::filesystem::create_directories(options.svg, error);
    for (const NamedPicture& picture : pictures) {
      write_text((std::filesystem::path(options.svg) / picture.file).string(), picture.svg.str());
    }
  }
  if (!options.html.empty()) write_text(options.html, html_report(report, pictures, tables));
}

void spikes(const SpikesOptions& options) {
  const InterruptGuard interrupt;
  const std::vector<double> ks = parse_ks(options.k);
  const RasterRequest request = raster_request(options);
  const model::ModelConfig config = model::open_model(options.model.path).config;
  check_data(config.spikes.has_value(),
             "{}: expected a spiking model (made by spb quantize --spike), got one without spikes",
             options.model.path);
  check(request.layer < config.num_layers(), "--raster: expected a layer below {}, got layer {}",
        config.num_layers(), request.layer);
  RasterTap raster(request);
  EventTap events(options, config.spikes->k);
  Reading reading(options, interrupt.flag());
  if (options.pictures()) reading.add_tap(std::ref(raster));
  if (!options.events.empty() || !options.nir.empty()) reading.add_tap(std::ref(events));
  const SpikesReport report = reading.run(ks);
  events.finish();
  const std::optional<SpikeSplit> split = reading.split();
  if (options.pictures()) write_pictures(options, report, raster.raster(), split);
  if (!options.csv.empty()) write_text(options.csv, to_csv(report, grouping_of(options)));
  if (!options.split_csv.empty() && split) write_text(options.split_csv, to_csv(*split));
  if (options.json) {
    nlohmann::json out = to_json(report, grouping_of(options));
    if (split) out["split"] = to_json(*split);
    fmt::print("{}\n", out.dump());
    return;
  }
  print_report(report, options);
  if (!split) return;
  for (const view::Table& table : split_tables(*split)) print_table(table);
}

void add_split_options(CLI::App& command, SpikesOptions& options) {
  const char* group = "Where perplexity is lost";
  CLI::Option* split =
      command
          .add_option("--split", options.split,
                      "read the text again with parts silenced: two readings for each site or "
                      "layer, one for each cell (a site of a layer)")
          ->group(group)
          ->delimiter(',')
          ->check(CLI::IsMember({"site", "layer", "cell"}));
  command
      .add_option("--float", options.float_model,
                  "the model before its weights became codes: what the codes cost")
      ->group(group)
      ->needs(split)
      ->type_name("MODEL");
  command.add_option("--split-csv", options.split_csv, "every reading of the split")
      ->group(group)
      ->needs(split)
      ->type_name("FILE");
}

void add_picture_options(CLI::App& command, SpikesOptions& options) {
  const char* group = "Pictures";
  command.add_option("--svg", options.svg, "write pictures into this folder")
      ->group(group)
      ->type_name("FOLDER");
  command.add_option("--html", options.html, "write a report with pictures and tables")
      ->group(group)
      ->type_name("FILE");
  command
      .add_option("--raster", options.raster, "layer and site of the raster (default: 0:mixer_in)")
      ->group(group)
      ->type_name("LAYER:SITE");
  command.add_option("--raster-tokens", options.raster_tokens, "the first tokens of the text")
      ->group(group)
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command
      .add_option("--neurons", options.neurons,
                  "that many of the most active ones, or a range of ids (default: 40)")
      ->group(group)
      ->type_name("N|FIRST-LAST");
  command.add_option("--coding", options.coding, "how the raster sends a count")
      ->group(group)
      ->check(CLI::IsMember(
          {"binary", "ternary", "bitwise", "bitwise-bidirectional", "twos-complement"}))
      ->capture_default_str();
  command.add_flag("--lowest-bit-first", options.lowest_bit_first, "in bitwise codings")
      ->group(group);
}

}  // namespace

void add_spikes(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("spikes", "show how a spiking model fires while it reads a text");
  auto options = std::make_shared<SpikesOptions>();
  options->model.add_to(*command);
  command->add_option("-f,--text", options->text, "the text; - is standard input")
      ->required()
      ->type_name("FILE");
  command->add_option("-w,--window", options->window, "tokens read from a common start")
      ->capture_default_str();
  command->add_flag("--special", options->special, "recognise special tokens in the text");
  options->state.add_to(*command);
  command->add_option("--k", options->k, "read the text with each of these k: 2,2.5,3,3.5,4")
      ->type_name("LIST");
  command->add_option("--by", options->by, "keep statistics apart by these")
      ->delimiter(',')
      ->check(CLI::IsMember({"layer", "site", "class"}));
  command->add_flag("--all-figures", options->all_figures, "every figure by its name");
  command->add_option("--constants", options->constants, "energy of an operation or byte, in pJ")
      ->type_name("FILE");
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->add_option("--csv", options->csv, "figures as a table for programs")->type_name("FILE");
  command->add_option("--events", options->events, "write every count, with layer, site and token")
      ->type_name("FILE");
  command->add_option("--nir", options->nir, "the same as NIR data (a build with HDF5)")
      ->type_name("FILE");
  add_split_options(*command, *options);
  add_picture_options(*command, *options);
  command->footer(
      "Examples:\n"
      "  spb spikes spiking.gguf --text book.txt\n"
      "  spb spikes spiking.gguf --text book.txt --k 2,2.5,3,3.5,4 --csv sweep.csv\n"
      "  spb spikes spiking.gguf --text book.txt --html report.html --raster 12:ffn_in\n"
      "  spb spikes spiking.gguf --text book.txt --split site,layer --float model.gguf");
  command->callback([options] { spikes(*options); });
}

}  // namespace spb::cli
