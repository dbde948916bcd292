// spb experts as a user meets it: its figures, its files and its refusals.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

#include "convert/convert.h"
#include "convert/synthesize.h"
#include "engine/perplexity.h"
#include "engine/text_model.h"
#include "golden/byte_tokenizer.h"
#include "golden/command.h"

namespace spb {
namespace {

using golden::Outcome;
using io::Json;
using io::read_text;

constexpr const char* kText =
    "The quick brown fox jumps over the lazy dog. 12 + 30 = 42, is it not?";
constexpr int64_t kExperts = 8;
constexpr int64_t kChosen = 2;
constexpr int64_t kLayers = 3;

class ExpertsCommandTest : public testing::Test {
 protected:
  // A dense model of bytes, mixtures made from it, and one without a tokenizer.
  static void SetUpTestSuite() {
    folder_ = std::make_unique<golden::TemporaryFolder>();
    const golden::Case model = golden::read_case("gla_swa_g2_d64_tied");
    golden::write_config(model, DType::kF32, Json::object(), folder_->path());
    golden::write_weights(model, DType::kF32, folder_->path());
    golden::write_byte_tokenizer(folder_->path());
    Context context(1);
    convert::ConvertSettings settings{.format = DType::kF32};
    convert::convert_model(context, folder_->path(), file("dense.gguf"), settings);
    for (const ops::RouterScore score : {ops::RouterScore::kSoftmax, ops::RouterScore::kSigmoid}) {
      const bool sigmoid = score == ops::RouterScore::kSigmoid;
      convert::UpcycleSettings upcycle;
      upcycle.moe.num_experts = kExperts;
      upcycle.moe.experts_per_token = kChosen;
      upcycle.moe.score = score;
      upcycle.moe.renormalize = sigmoid;
      upcycle.router_deviation = 2;
      settings.upcycle = upcycle;
      convert::convert_model(context, folder_->path(), file(sigmoid ? "sigmoid.gguf" : "moe.gguf"),
                             settings);
    }
    std::ofstream(file("text")) << kText;
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static std::string file(const std::string& name) { return folder_->file(name); }

  static Outcome experts(const std::string& words, const std::string& model = "moe.gguf") {
    return golden::run_command(*folder_, fmt::format(SPB_BINARY " experts {} --text {} {}",
                                                     file(model), file("text"), words));
  }
  static Json json(const std::string& words, const std::string& model = "moe.gguf") {
    const Outcome outcome = experts("--json " + words, model);
    EXPECT_EQ(outcome.status, 0) << outcome.error;
    return Json::parse(outcome.out);
  }

 private:
  static inline std::unique_ptr<golden::TemporaryFolder> folder_;
};

// The same numbers, from the definitions.
class Collector : public model::ExpertObserver {
 public:
  explicit Collector(bool sigmoid) : sigmoid_(sigmoid) {}

  void on_choices(int64_t layer, const model::ExpertChoices& choices) override {
    for (int64_t i = 0; i < choices.experts.shape()[0]; ++i) {
      const auto* logits = choices.logits.row_as<float>(i);
      std::vector<double> scores(kExperts);
      double sum = 0;
      for (int64_t e = 0; e < kExperts; ++e) {
        const double power = std::exp(static_cast<double>(logits[e]));
        sum += scores[static_cast<size_t>(e)] = sigmoid_ ? power / (1 + power) : power;
      }
      for (int64_t e = 0; e < kExperts; ++e) {
        score[{layer, e}] += scores[static_cast<size_t>(e)] / sum;
      }
      for (int64_t j = 0; j < kChosen; ++j) {
        count[{layer, choices.experts.row_as<int32_t>(i)[j]}] += 1;
        probability[layer] += static_cast<double>(choices.probabilities.row_as<float>(i)[j]);
      }
      tokens[layer] += 1;
    }
  }
  std::map<std::pair<int64_t, int64_t>, double> score, count;
  std::map<int64_t, double> probability, tokens;

 private:
  bool sigmoid_;
};

void expect_figures(const Json& layer, Collector& seen) {
  const int64_t index = layer["layer"];
  const double tokens = seen.tokens.at(index);
  EXPECT_EQ(layer["tokens"], tokens);
  double entropy = 0, loss = 0, largest = 0, unused = 0;
  for (int64_t e = 0; e < kExperts; ++e) {
    const auto at = static_cast<size_t>(e);
    const double count = seen.count[{index, e}];
    const double share = count / (tokens * kChosen);
    const double score = seen.score[{index, e}] / tokens;
    EXPECT_EQ(layer["choices"][at], count);
    EXPECT_NEAR(layer["load_share"][at].get<double>(), share, 1e-12);
    EXPECT_NEAR(layer["mean_score"][at].get<double>(), score, 1e-12);
    entropy -= share > 0 ? share * std::log2(share) : 0;
    loss += kExperts * share * score;
    largest = std::max(largest, count);
    unused += count == 0 ? 1 : 0;
  }
  EXPECT_EQ(layer["choices"][layer["hottest"].get<size_t>()], largest);
  EXPECT_EQ(layer["unused"], unused);
  EXPECT_NEAR(layer["imbalance"].get<double>(), largest * kExperts / (tokens * kChosen), 1e-12);
  EXPECT_NEAR(layer["entropy"].get<double>(), entropy, 1e-12);
  EXPECT_NEAR(layer["effective_experts"].get<double>(), std::exp2(entropy), 1e-9);
  EXPECT_NEAR(layer["balance_loss"].get<double>(), loss, 1e-12);
  EXPECT_NEAR(layer["mean_probability"].get<double>(), seen.probability[index] / (tokens * kChosen),
              1e-12);
}

TEST_F(ExpertsCommandTest, FiguresAreThoseOfTheRouters) {
  for (const char* name : {"moe.gguf", "sigmoid.gguf"}) {
    const bool sigmoid = std::string(name) == "sigmoid.gguf";
    const Json shown = json("--window 16 --threads 1", name);
    Context context(1);
    const engine::TextModel model = engine::load_text_model(context, file(name));
    const std::vector<int32_t> tokens = model.need_tokenizer().encode(kText, {});
    ASSERT_EQ(shown["tokens"], tokens.size());
    Collector seen(sigmoid);
    model::ForwardHooks hooks;
    hooks.expert_observer = &seen;
    const engine::Perplexity perplexity = engine::measure_perplexity(
        context, *model.model, tokens, 16, {16, 16, DType::kF16}, {}, nullptr, hooks);
    EXPECT_NEAR(shown["perplexity"].get<double>(), perplexity.value(), 1e-3 * perplexity.value());
    ASSERT_EQ(shown["layers"].size(), size_t{kLayers});
    ASSERT_EQ(seen.tokens.size(), size_t{kLayers});
    EXPECT_EQ(shown["score"], sigmoid ? "sigmoid" : "softmax");
    for (const Json& layer : shown["layers"]) expect_figures(layer, seen);
  }
}

TEST_F(ExpertsCommandTest, LoadsDoNotDependOnThreadsOrChunks) {
  const Json shown = json("--window 32 --threads 1");
  EXPECT_EQ(shown, json("--window 32 --threads 3"));
  const Json chunked = json("--window 32 --chunk 5");
  for (size_t i = 0; i < shown["layers"].size(); ++i) {
    EXPECT_EQ(shown["layers"][i]["choices"], chunked["layers"][i]["choices"]);
  }
}

TEST_F(ExpertsCommandTest, TableCsvAndPictureShowEveryLayer) {
  const Outcome outcome =
      experts(fmt::format("--csv {} --svg {}", file("loads.csv"), file("loads.svg")));
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  EXPECT_NE(outcome.out.find("8 experts, 2 of them for each token, 1 shared"), std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("max/mean"), std::string::npos) << outcome.out;
  std::istringstream lines(read_text(file("loads.csv")));
  std::string line;
  std::getline(lines, line);
  EXPECT_EQ(line, "layer,expert,choices,load_share,mean_score");
  double shares = 0;
  int count = 0;
  for (; std::getline(lines, line); ++count) {
    int layer = 0, expert = 0, choices = 0;
    double share = 0;
    ASSERT_EQ(std::sscanf(line.c_str(), "%d,%d,%d,%lf", &layer, &expert, &choices, &share), 4);
    EXPECT_EQ(layer * kExperts + expert, count);
    shares += share;
  }
  EXPECT_EQ(count, kLayers * kExperts);
  EXPECT_NEAR(shares, static_cast<double>(kLayers), 1e-9);
  const std::string svg = read_text(file("loads.svg"));
  EXPECT_EQ(svg.substr(0, 4), "<svg");
  EXPECT_NE(svg.find("layer 1"), std::string::npos);
}

TEST_F(ExpertsCommandTest, RefusesModelsWithoutExpertsAndWithoutTokenizer) {
  const Outcome dense = experts("", "dense.gguf");
  EXPECT_EQ(dense.status, 1);
  EXPECT_NE(dense.error.find("expected a model with experts"), std::string::npos) << dense.error;
  Context context(1);
  model::ModelConfig config = model::preset("tiny-76b");
  config.layers.resize(4);
  convert::synthesize(context, config, {}, file("tiny.gguf"));
  const Outcome mute = experts("", "tiny.gguf");
  EXPECT_EQ(mute.status, 1);
  EXPECT_NE(mute.error.find("tokenizer"), std::string::npos) << mute.error;
  const Outcome missing = golden::run_command(
      golden::TemporaryFolder(), fmt::format(SPB_BINARY " experts {}", file("moe.gguf")));
  EXPECT_EQ(missing.status, 2);
}

}  // namespace
}  // namespace spb
