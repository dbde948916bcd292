// A real model on a CUDA device and on the CPU: the same greedy continuations.
//
// SPB_TEST_MODEL names SmolLM2-135M-Instruct.Q4_1.gguf, as in smollm2_test.cpp. Its weights are
// written as f32 first: products of block formats round activations on the CPU, and not on a
// device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "convert/convert.h"
#include "core/options.h"
#include "core/test_source.h"
#include "golden/golden_recipe.h"
#include "io/json.h"
#include "model/forward.h"

namespace spb {
namespace {

constexpr int64_t kTokens = 32;  // of a continuation
constexpr int64_t kContext = 256;

// Values between operators in bf16 move logits by about 0.1. Where the two best tokens are closer
// than this, either may come first.
constexpr float kNearTie = 0.5f;

struct Choice {
  int32_t best = 0;
  float gap = 0;  // between the logits of the two best
};

// A model with what it needs to continue one text.
class Writer {
 public:
  Writer(const Device& device, DType activations, const std::string& path)
      : context_(device, 0, activations), model_(model::Model::load(context_, path)) {}

  void restart() { state_.emplace(*model_, model::StateOptions{kContext, kContext, DType::kF32}); }

  Choice after(std::span<const int32_t> tokens) {
    const int64_t vocab = model_->config().vocab_size;
    Tensor logits(DType::kF32, Shape{1, vocab});
    const model::SequenceSlice slice{tokens, &*state_, model::Logits::kLast};
    model::forward(context_, *model_, {&slice, 1}, logits);
    float* row = logits.as<float>();
    const auto best = static_cast<int32_t>(std::max_element(row, row + vocab) - row);
    const float highest = std::exchange(row[best], -HUGE_VALF);
    return {best, highest - *std::max_element(row, row + vocab)};
  }

 private:
  Context context_;
  std::unique_ptr<model::Model> model_;
  std::optional<model::SequenceState> state_;
};

class SmolLm2Cuda : public testing::Test {
 protected:
  void SetUp() override {
    const std::optional<std::string> path = option("SPB_TEST_MODEL");
    if (!path) GTEST_SKIP() << "set SPB_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf";
    const std::string reason = cuda::unusable_reason(0);
    if (!reason.empty()) GTEST_SKIP() << reason;
    const io::Json golden = io::read_json_file(test::source_root() + "/tests/golden/smollm2.json");
    for (const io::Json& prompt : golden.at("greedy")) {
      prompts_.push_back(prompt.at("prompt").get<std::vector<int32_t>>());
    }
    Context context;
    convert::ConvertSettings settings;
    settings.format = settings.embedding_format = DType::kF32;
    convert::convert_model(context, *path, file(), settings);
  }

  std::string file() const { return folder_.file("f32.gguf"); }

  golden::TemporaryFolder folder_;
  std::vector<std::vector<int32_t>> prompts_;
};

TEST_F(SmolLm2Cuda, GreedyTextIsThatOfTheCpu) {
  Writer cpu({}, DType::kF32, file());
  Writer card({Device::Type::kCuda, 0}, DType::kF32, file());
  ASSERT_EQ(prompts_.size(), 10u);
  for (size_t i = 0; i < prompts_.size(); ++i) {
    std::vector<int32_t> texts[2];
    for (Writer* writer : {&cpu, &card}) {
      std::vector<int32_t>& text = texts[writer == &card ? 1 : 0];
      writer->restart();
      std::vector<int32_t> next = prompts_[i];
      while (static_cast<int64_t>(text.size()) < kTokens) {
        text.push_back(writer->after(next).best);
        next.assign(1, text.back());
      }
    }
    EXPECT_EQ(texts[0], texts[1]) << "prompt " << i;
  }
}

// The device is fed the text of the CPU, so that one near tie does not hide what comes after it.
TEST_F(SmolLm2Cuda, EveryClearChoiceIsTheSameInBFloat16) {
  Writer cpu({}, DType::kF32, file());
  Writer card({Device::Type::kCuda, 0}, DType::kBF16, file());
  int64_t same = 0;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    cpu.restart();
    card.restart();
    std::vector<int32_t> next = prompts_[i];
    for (int64_t token = 0; token < kTokens; ++token) {
      const Choice expected = cpu.after(next);
      const Choice choice = card.after(next);
      same += choice.best == expected.best ? 1 : 0;
      if (expected.gap >= kNearTie) {
        EXPECT_EQ(choice.best, expected.best) << "prompt " << i << ", token " << token;
      }
      next.assign(1, expected.best);
    }
  }
  EXPECT_GE(same, static_cast<int64_t>(prompts_.size()) * kTokens * 95 / 100);
}

}  // namespace
}  // namespace spb
