// spb spikes as a user meets it: its figures, its files and its refusals.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "convert/convert.h"
#include "golden/byte_tokenizer.h"
#include "golden/command.h"
#include "golden/golden_recipe.h"
#include "model/forward.h"
#include "model/open_model.h"
#include "spike/statistics/statistics.h"
#include "text/tokenizer.h"
#include "view/spike_events.h"

namespace spb {
namespace {

using io::Json;

using golden::Outcome;
using io::read_text;

constexpr const char* kText =
    "The quick brown fox jumps over the lazy dog. <|im_end|> 12 + 30 = 42.";

class SpikesCommandTest : public testing::Test {
 protected:
  // A spiking model and its float self, of bytes and two special tokens.
  static void SetUpTestSuite() {
    folder_ = std::make_unique<golden::TemporaryFolder>();
    const golden::Case model = golden::read_case("gla_swa_g2_d64_tied");
    golden::write_config(model, DType::kF32, Json::object(), folder_->path());
    golden::write_weights(model, DType::kF32, folder_->path());
    golden::write_byte_tokenizer(folder_->path());
    Context context(1);
    convert::ConvertSettings options{.format = DType::kF32};
    convert::convert_model(context, folder_->path(), file("float.gguf"), options);
    options.spikes = convert::SpikeSettings{};
    convert::convert_model(context, folder_->path(), file("spiking.gguf"), options);
    std::ofstream(file("text")) << kText;
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static std::string file(const std::string& name) { return folder_->file(name); }

  static Outcome spb(const std::string& words) {
    return golden::run_command(*folder_, fmt::format(SPB_BINARY " {}", words));
  }
  static Outcome spikes(const std::string& words = "") {
    return spb(fmt::format("spikes {} --text {} {}", file("spiking.gguf"), file("text"), words));
  }
  static Json json(const std::string& words = "") {
    const Outcome outcome = spikes("--json " + words);
    EXPECT_EQ(outcome.status, 0) << outcome.error;
    return Json::parse(outcome.out);
  }
  static void expect_error(const std::string& words, int status, const std::string& part) {
    const Outcome outcome = spikes(words);
    EXPECT_EQ(outcome.status, status) << words << "\n" << outcome.error;
    EXPECT_NE(outcome.error.find(part), std::string::npos) << words << "\n" << outcome.error;
  }

 private:
  static inline std::unique_ptr<golden::TemporaryFolder> folder_;
};

// The statistics, gathered once more by hand: one call of forward for each window.
class Collector : public model::ActivityObserver {
 public:
  explicit Collector(Context& context) : context_(context) {}
  void on_activations(int64_t, model::Site, ConstTensorView) override {}
  void on_spikes(int64_t layer, model::Site site, const spike::SpikeCounts& counts) override {
    gathered[{layer, std::string(name(site))}].add(context_, counts);
  }
  std::map<std::pair<int64_t, std::string>, spike::SpikeStatistics> gathered;

 private:
  Context& context_;
};

TEST_F(SpikesCommandTest, FiguresAreThoseOfTheForwardPass) {
  Context context(1);
  const auto model = model::Model::load(context, file("spiking.gguf"));
  const Json shown = json("--by layer,site --window 16 --chunk 5 --threads 1");
  const int64_t tokens = shown["tokens"];
  const auto tokenizer =
      text::load_tokenizer_folder(std::filesystem::path(file("text")).parent_path());
  const std::vector<int32_t> ids = tokenizer->encode(kText, {.parse_special = false});
  ASSERT_EQ(std::ssize(ids), tokens);
  Collector collector(context);
  for (int64_t start = 0; start + 1 < tokens; start += 16) {
    const int64_t count = std::min<int64_t>(15, tokens - 1 - start);
    model::SequenceState state(*model, {16, 16});
    Tensor logits(DType::kF32, Shape{count, model->config().vocab_size});
    const model::SequenceSlice slice{
        std::span(ids).subspan(static_cast<size_t>(start), static_cast<size_t>(count)), &state,
        model::Logits::kAll};
    model::forward(context, *model, {&slice, 1}, logits, {&collector, false});
  }
  ASSERT_EQ(shown["groups"].size(), collector.gathered.size());
  for (const Json& group : shown["groups"]) {
    const spike::SpikeStatistics& expected =
        collector.gathered.at({group["layer"].get<int64_t>(), group["site"].get<std::string>()});
    EXPECT_EQ(group["rows"], expected.rows());
    EXPECT_EQ(group["channels"], expected.channels());
    for (const spike::FigureField& field : spike::figure_fields()) {
      EXPECT_EQ(group["figures"][std::string(field.name)], expected.figures().*field.value)
          << field.name;
    }
  }
}

TEST_F(SpikesCommandTest, ClassesOfTokensAddUpToAll) {
  for (const char* special : {"", "--special"}) {
    const Json shown = json(fmt::format("--by class --window 16 {}", special));
    const int64_t windows = (shown["tokens"].get<int64_t>() + 14) / 16;
    double entries = 0;
    std::vector<std::string> classes;
    for (const Json& group : shown["groups"]) {
      entries += group["figures"]["entries"].get<double>();
      classes.push_back(group["class"]);
      if (classes.back() != "first") continue;
      const double share =
          group["figures"]["entries"].get<double>() / shown["figures"]["entries"].get<double>();
      EXPECT_NEAR(share, static_cast<double>(windows) / shown["predictions"].get<double>(), 1e-12);
    }
    EXPECT_EQ(entries, shown["figures"]["entries"]);
    const std::vector<std::string> expected = {"first", "special", "text"};
    EXPECT_EQ(classes, *special != '\0' ? expected : (std::vector<std::string>{"first", "text"}));
  }
}

// Statistics neither change the model nor depend on threads.
TEST_F(SpikesCommandTest, PerplexityIsThatOfThePerplexityCommand) {
  const Outcome plain = spb(
      fmt::format("perplexity {} -f {} --json --window 32", file("spiking.gguf"), file("text")));
  ASSERT_EQ(plain.status, 0) << plain.error;
  const Json shown = json("--window 32 --threads 1");
  EXPECT_EQ(shown["perplexity"], Json::parse(plain.out)["perplexity"]);
  EXPECT_EQ(shown, json("--window 32 --threads 3"));
}

TEST_F(SpikesCommandTest, TheSweepIsMonotoneAndHoldsTheModelsOwnK) {
  const Json shown = json("--k 4,2,3,2.5,3.5,3");
  ASSERT_EQ(shown["sweep"].size(), 5u);
  double sparsity = 1, k = 0;
  for (const Json& run : shown["sweep"]) {
    EXPECT_GT(run["k"].get<double>(), k);
    EXPECT_LT(run["figures"]["sparsity_t3_per_entry"].get<double>(), sparsity);
    k = run["k"];
    sparsity = run["figures"]["sparsity_t3_per_entry"];
  }
  EXPECT_EQ(shown["sweep"][2]["figures"], shown["figures"]);  // k = 3
  const Outcome text = spikes("--k 2,3");
  EXPECT_NE(text.out.find("k sweep"), std::string::npos);
  EXPECT_NE(text.out.find("0.730"), std::string::npos);  // the report's, for k = 2
}

TEST_F(SpikesCommandTest, EnergyCountsEveryPartAndAddsUp) {
  const Json shown = json();
  const Json report =
      spb("spikes " + file("spiking.gguf") + " --text " + file("text") + " --json --profile report")
                  .status == 0
          ? Json::parse(read_text(file("stdout")))
          : Json();
  const auto parts = [](const Json& from) {
    std::map<std::string, Json> named;
    for (const Json& part : from["energy"]["parts"]) named[part["part"]] = part;
    return named;
  };
  auto own = parts(shown), all = parts(report);
  EXPECT_EQ(own["mixer_in"]["executed_as"], "spikes");
  EXPECT_EQ(own["ffn_out"]["executed_as"], "fp16");
  EXPECT_EQ(all["ffn_out"]["executed_as"], "spikes");
  for (const char* dense : {"attention", "recurrent state", "head"}) {
    EXPECT_EQ(own[dense]["synaptic_operations"], 0) << dense;
    EXPECT_GT(own[dense]["products"].get<double>(), 0) << dense;
  }
  const auto sum_of = [&](const char* way, const char* kind) {
    double sum = 0;
    for (const auto& [name, part] : own) {
      if (name != "total") sum += part[way]["executed"][kind].get<double>();
    }
    return sum;
  };
  for (const char* way : {"together", "alone"}) {
    for (const char* kind : {"compute", "memory"}) {
      const double sum = sum_of(way, kind);
      EXPECT_NEAR(sum, own["total"][way]["executed"][kind].get<double>(), 1e-9 * sum);
    }
  }
  // One token alone costs more than one of many.
  EXPECT_GT(own["total"]["alone"]["executed"]["memory"],
            own["total"]["together"]["executed"]["memory"]);
}

TEST_F(SpikesCommandTest, ConstantsComeFromAFile) {
  std::ofstream(file("constants")) << "int8_add = 0.06  # twice the default\n";
  const auto compute = [](const Json& shown) {
    for (const Json& part : shown["energy"]["parts"]) {
      if (part["part"] == "mixer_in") return part["together"]["executed"]["compute"].get<double>();
    }
    return 0.0;
  };
  EXPECT_NEAR(compute(json("--constants " + file("constants"))), 2 * compute(json()), 1e-6);
  std::ofstream(file("constants")) << "int8_add = cheap\n";
  expect_error("--constants " + file("constants"), 1, "constants");
}

TEST_F(SpikesCommandTest, CsvHasOneLineForEachGroupAndK) {
  const Outcome outcome = spikes("--by site --k 2,3 --csv " + file("table.csv"));
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  std::istringstream in(read_text(file("table.csv")));
  std::string line;
  std::getline(in, line);
  EXPECT_EQ(line.substr(0, 47), "k,perplexity,standard_error,layer,site,class,en");
  const auto columns = std::count(line.begin(), line.end(), ',');
  int lines = 0;
  for (; std::getline(in, line); ++lines) {
    EXPECT_EQ(std::count(line.begin(), line.end(), ','), columns);
    EXPECT_NE(line.find(",all,"), std::string::npos);
  }
  EXPECT_EQ(lines, 2 * 4);  // mixer_in, mixer_out, query, ffn_in
}

TEST_F(SpikesCommandTest, EveryFigureIsPrintedByName) {
  const Outcome outcome = spikes("--all-figures");
  for (const spike::FigureField& field : spike::figure_fields()) {
    EXPECT_NE(outcome.out.find(std::string(field.name)), std::string::npos) << field.name;
  }
  EXPECT_EQ(outcome.out.find("nan"), std::string::npos);
}

// The file holds the counts whose statistics are printed.
TEST_F(SpikesCommandTest, EventsAreTheCounts) {
  const Outcome outcome = spikes("--json --window 16 --events " + file("events"));
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const Json shown = Json::parse(outcome.out);
  view::SpikeEventReader reader(file("events"));
  view::SpikeEvents events;
  double entries = 0, silent = 0;
  while (reader.next(events)) {
    EXPECT_EQ(events.block.position, events.block.first_token % 16);
    EXPECT_EQ(events.block.rows_per_token == 1, events.block.site != "query");
    entries += static_cast<double>(events.counts.size());
    silent += static_cast<double>(std::count(events.counts.begin(), events.counts.end(), 0));
  }
  EXPECT_EQ(entries, shown["figures"]["entries"]);
  EXPECT_EQ(silent / entries, shown["figures"]["silent_share"]);
}

TEST_F(SpikesCommandTest, PicturesAndReportAreWritten) {
  const Outcome outcome =
      spikes(fmt::format("--k 2,3 --raster 1:query --neurons 3-20 --raster-tokens 8 --svg {} "
                         "--html {}",
                         file("pictures"), file("report.html")));
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const std::string html = read_text(file("report.html"));
  EXPECT_EQ(html.substr(0, 15), "<!DOCTYPE html>");
  for (const char* name : {"raster", "histogram", "firing", "silence", "sweep"}) {
    const std::string svg = read_text(file(fmt::format("pictures/{}.svg", name)));
    EXPECT_EQ(svg.substr(0, 4), "<svg") << name;
  }
  for (const char* outside : {"<script", "src=", "href=", "url("}) {
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  }
}

// The ends of the split are models of their own: the float one, and the spiking one.
TEST_F(SpikesCommandTest, TheSplitLiesBetweenTheFloatAndTheSpikingModel) {
  const auto perplexity = [](const std::string& words) {
    const Outcome outcome = spb("perplexity --json --window 32 -f " + file("text") + " " + words);
    EXPECT_EQ(outcome.status, 0) << outcome.error;
    return Json::parse(outcome.out)["perplexity"].get<double>();
  };
  const Json shown =
      json(fmt::format("--window 32 --split site,layer,cell --float {} --split-csv {} --html {}",
                       file("float.gguf"), file("split.csv"), file("split.html")));
  const Json& split = shown["split"];
  ASSERT_EQ(split["causes"].size(), 6u);
  const auto cause = [&](size_t i) { return split["causes"][i]["alone"]; };
  EXPECT_EQ(cause(0)["perplexity"], perplexity(file("float.gguf")));
  EXPECT_EQ(cause(0)["loss"], 0.0);
  EXPECT_EQ(cause(0)["standard_error"], 0.0);
  const double all = perplexity(file("spiking.gguf") + " --profile reference --cache-type f16");
  EXPECT_EQ(cause(5)["perplexity"], all);
  EXPECT_NEAR(cause(5)["loss"].get<double>(), all / perplexity(file("float.gguf")) - 1, 1e-5);
  // Layers 0 and 2 are linear: no queries spike there, no keys and values are rounded.
  EXPECT_EQ(split["sites"].size(), 5u);
  EXPECT_EQ(split["layers"].size(), 3u);
  EXPECT_EQ(split["cells"].size(), 11u);
  const std::string csv = read_text(file("split.csv"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 6 + 2 * 5 + 2 * 3 + 11);
  EXPECT_NE(read_text(file("split.html")).find("Where spikes cost perplexity"), std::string::npos);
}

// Layers 0 and 2 have nothing but sites that --k-site silences too.
TEST_F(SpikesCommandTest, PartsAreModelsWithTheOthersSilenced) {
  const auto split_of = [](const std::string& words) {
    return json("--window 32 --split layer " + words)["split"];
  };
  const Json whole = split_of("");
  ASSERT_EQ(whole["causes"].size(), 4u);
  ASSERT_EQ(whole["layers"].size(), 3u);
  const auto all = [](const Json& split) { return split["causes"][3]["alone"]["perplexity"]; };
  EXPECT_EQ(whole["layers"][1]["alone"]["perplexity"],
            all(split_of("--k-site 0:all=off,2:all=off")));
  EXPECT_EQ(whole["layers"][0]["rest"]["perplexity"], all(split_of("--k-site 0:all=off")));
  EXPECT_NE(whole["layers"][0]["alone"], whole["layers"][2]["alone"]);
}

TEST_F(SpikesCommandTest, EverySiteMayHaveItsOwnK) {
  EXPECT_EQ(json("--k-site all=3")["figures"], json()["figures"]);
  const auto share = [](const Json& shown, const char* site) {
    for (const Json& group : shown["groups"]) {
      if (group["site"] == site) return group["figures"]["silent_share"].get<double>();
    }
    return -1.0;
  };
  const Json plain = json("--by site");
  const Json shown = json("--by site --k-site ffn_in=9,mixer_out=off");
  EXPECT_LT(share(shown, "ffn_in"), share(plain, "ffn_in"));
  EXPECT_EQ(share(shown, "mixer_out"), -1);
  EXPECT_EQ(shown["k"], 3);
}

// What a file says about its sites is what the options would.
TEST_F(SpikesCommandTest, AFileKeepsTheKOfItsSites) {
  const std::string rules = "--k-site query=off,ffn_in=4.5,1:mixer_in=6";
  const std::string mixed = file("mixed.gguf");
  const Outcome made = spb(
      fmt::format("quantize {} --spike --format f32 -o {} {}", file("float.gguf"), mixed, rules));
  ASSERT_EQ(made.status, 0) << made.error;
  const auto read = [&](const std::string& model, const std::string& words) {
    const Outcome outcome =
        spb(fmt::format("spikes {} --text {} --json --window 16 {}", model, file("text"), words));
    EXPECT_EQ(outcome.status, 0) << outcome.error;
    Json shown = Json::parse(outcome.out);
    shown.erase("model");
    return shown;
  };
  EXPECT_EQ(read(mixed, ""), read(file("spiking.gguf"), rules));
  const Outcome again = spb(fmt::format("convert {} -o {}", mixed, file("again.gguf")));
  ASSERT_EQ(again.status, 0) << again.error;
  EXPECT_EQ(read(file("again.gguf"), ""), read(mixed, ""));
}

TEST_F(SpikesCommandTest, ASilencedSiteKeepsTheFloatWeights) {
  const std::string path = file("silenced.gguf");
  const std::string quantize = fmt::format("quantize --spike --k-site all=off -o {} ", path);
  ASSERT_EQ(spb(quantize + file("float.gguf")).status, 0);
  const model::OpenModel opened = model::open_model(path);
  for (const io::TensorEntry& tensor : opened.source->tensors()) {
    EXPECT_NE(tensor.view.dtype(), DType::kI8) << tensor.name;
  }
  const auto perplexity = [](const std::string& words) {
    const Outcome outcome = spb("perplexity --json -f " + file("text") + " " + words);
    EXPECT_EQ(outcome.status, 0) << outcome.error;
    return Json::parse(outcome.out)["perplexity"].get<double>();
  };
  // Keys and values are still rounded.
  EXPECT_NEAR(perplexity(path) / perplexity(file("float.gguf")), 1, 0.01);
  const Outcome coded = spb(quantize + " --force " + file("spiking.gguf"));
  EXPECT_EQ(coded.status, 2);
  EXPECT_NE(coded.error.find("without codes"), std::string::npos) << coded.error;
}

TEST_F(SpikesCommandTest, RefusalsNameTheOption) {
  for (const char* rule : {"ffn_in", "nose=3", "key=3", "ffn_in=0", "ffn_in=x", "3-1:all=3",
                           "x:all=3", "0:all=nan", "=3"}) {
    expect_error(fmt::format("--k-site {}", rule), 2, "--k-site");
  }
  expect_error("--k-site 0-3:all=3", 2, "layers");
  expect_error("--split nose", 2, "--split");
  expect_error("--float " + file("float.gguf"), 2, "--split");
  expect_error("--split site --float /no/such/model", 1, "/no/such/model");
  expect_error("--k 0", 2, "--k");
  expect_error("--k 3,x", 2, "--k");
  expect_error("--by head", 2, "--by");
  expect_error("--window 1", 2, "window");
  expect_error("--html x --raster 3", 2, "--raster");
  expect_error("--html x --raster 0:nose", 2, "--raster");
  expect_error("--html x --raster 99:query", 2, "layer 99");
  expect_error("--html x --neurons 9-3", 2, "--neurons");
  expect_error("--html x --neurons 0-511", 2, "--neurons");
  expect_error("--html x --coding bitwise", 1, "below 0");
  expect_error("--html /no/such/folder/x", 1, "/no/such/folder");
  expect_error("--svg " + file("text"), 1, "text");
  const Outcome dense = spb("spikes " + file("float.gguf") + " --text " + file("text"));
  EXPECT_EQ(dense.status, 1);
  EXPECT_NE(dense.error.find("spiking"), std::string::npos) << dense.error;
}

}  // namespace
}  // namespace spb
