// A real model file against llama.cpp: token ids, greedy continuations, perplexity.
//
// SPB_TEST_MODEL names SmolLM2-135M-Instruct.Q4_1.gguf (scripts/fetch_demo_model.sh gets it);
// without it these tests are skipped.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/options.h"
#include "core/test_source.h"
#include "engine/perplexity.h"
#include "engine/text_model.h"
#include "io/json.h"
#include "model/forward.h"

namespace spb {
namespace {

// llama.cpp and this program round activations to 8 bits in different groupings, which moves logits
// by about 0.1. Where its two best tokens are closer than this, either may come first.
constexpr double kNearTie = 0.4;
constexpr double kPerplexityTolerance = 0.005;

std::filesystem::path golden_folder() {
  return std::filesystem::path(test::source_root()) / "tests" / "golden";
}

class SmolLm2 : public testing::Test {
 protected:
  void SetUp() override {
    const std::optional<std::string> path = option("SPB_TEST_MODEL");
    if (!path) GTEST_SKIP() << "set SPB_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf";
    golden_ = io::read_json_file((golden_folder() / "smollm2.json").string());
    model_ = engine::load_text_model(context_, *path);
  }

  std::vector<int32_t> encode(const std::string& text, bool special) {
    return model_.need_tokenizer().encode(text, {.parse_special = special, .add_bos = false});
  }

  // The best next token after `tokens` more.
  int32_t best_after(model::SequenceState& state, std::span<const int32_t> tokens) {
    const int64_t vocab = model_.model->config().vocab_size;
    Tensor logits(DType::kF32, Shape{1, vocab});
    const model::SequenceSlice slice{tokens, &state, model::Logits::kLast};
    model::forward(context_, *model_.model, {&slice, 1}, logits);
    const float* row = logits.as<float>();
    return static_cast<int32_t>(std::max_element(row, row + vocab) - row);
  }

  Context context_;
  io::Json golden_;
  engine::TextModel model_;
};

TEST_F(SmolLm2, TokensOfThePromptsAndOfTheTextAreEqual) {
  for (const io::Json& prompt : golden_.at("greedy")) {
    EXPECT_EQ(encode(prompt.at("text"), true), prompt.at("prompt").get<std::vector<int32_t>>())
        << prompt.at("name");
  }
  std::ifstream file(golden_folder() / golden_.at("perplexity").at("text").get<std::string>());
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_EQ(encode(text, false), golden_.at("perplexity").at("ids").get<std::vector<int32_t>>());
}

// Follows the expected continuation, so that one near tie does not hide what comes after it.
TEST_F(SmolLm2, EveryClearChoiceOfTheGreedyContinuationsIsTheSame) {
  int64_t clear = 0;
  int64_t same = 0;
  int64_t all = 0;
  for (const io::Json& prompt : golden_.at("greedy")) {
    const auto expected = prompt.at("continuation").get<std::vector<int32_t>>();
    const auto gaps = prompt.at("gaps").get<std::vector<double>>();
    auto next = prompt.at("prompt").get<std::vector<int32_t>>();
    model::SequenceState state(*model_.model, {512, 512, DType::kF16});
    for (size_t i = 0; i < expected.size(); ++i) {
      const int32_t best = best_after(state, next);
      ++all;
      same += best == expected[i] ? 1 : 0;
      if (gaps[i] >= kNearTie) {
        ++clear;
        EXPECT_EQ(best, expected[i]) << prompt.at("name") << ", step " << i << ", gap " << gaps[i];
      }
      next.assign(1, expected[i]);
    }
  }
  EXPECT_GE(clear, all / 2);
  EXPECT_GE(same, all * 95 / 100) << "too many near ties fall the other way";
}

TEST_F(SmolLm2, PerplexityAgrees) {
  const io::Json& expected = golden_.at("perplexity");
  const auto ids = expected.at("ids").get<std::vector<int32_t>>();
  const auto window = expected.at("window").get<int64_t>();
  const engine::Perplexity measured = engine::measure_perplexity(
      context_, *model_.model, ids, window, {window, window, DType::kF16});
  const auto reference = expected.at("perplexity").get<double>();
  EXPECT_EQ(measured.predictions, expected.at("scored").get<int64_t>());
  EXPECT_NEAR(measured.value() / reference, 1.0, kPerplexityTolerance);
}

}  // namespace
}  // namespace spb
