// Every member of the family against the same model in double, and the laws of sequences.
#include <gtest/gtest.h>

#include "core/error.h"
#include "model/forward.h"
#include "model/test_family.h"
#include "model/test_model.h"
#include "model/test_plain_model.h"

namespace spb::model {
namespace {

constexpr StateOptions kExact{.max_context = 256, .max_chunk = 64, .cache_dtype = DType::kF32};
constexpr std::array<Mixer, 3> kAllMixers = {Mixer::kLinear, Mixer::kWindow, Mixer::kFull};

void make_parallel(ModelConfig& c, std::vector<Mixer> mixers) {
  c.layers.assign(3, LayerConfig{std::move(mixers)});
}

std::vector<FamilyMember> members() {
  std::vector<FamilyMember> members = sparse_members();
  const std::vector<FamilyMember> others = {
      {"seven_b", [](ModelConfig&) {}},
      {"transformer", [](ModelConfig& c) { c.layers = uniform_layers(3, Mixer::kFull); }},
      {"linear_beside_window",
       [](ModelConfig& c) {
         make_parallel(c, {Mixer::kLinear, Mixer::kWindow});
       }},
      {"full_beside_linear",
       [](ModelConfig& c) {
         make_parallel(c, {Mixer::kFull, Mixer::kLinear});
         c.branch_weights = {0.25, 1.0, -1.5};
       }},
      {"three_branches_learned",
       [](ModelConfig& c) {
         make_parallel(c, {kAllMixers.begin(), kAllMixers.end()});
         c.branch_weights_learned = true;
       }},
      {"sigmoid_map", [](ModelConfig& c) { c.feature_map = ops::FeatureMap::kSigmoid; }},
      {"tied_gate",
       [](ModelConfig& c) {
         c.feature_map = ops::FeatureMap::kSigmoid;
         c.tied_gate = true;
       }},
      {"mixers_in_sequence",
       [](ModelConfig& c) {
         c.layers = {{{Mixer::kLinear}, FeedForward::kNone},
                     {{Mixer::kWindow}, FeedForward::kDense},
                     {{Mixer::kFull}, FeedForward::kNone}};
       }},
      {"like_76b", [](ModelConfig& c) { make_like_76b(c, 24); }},
  };
  members.insert(members.end(), others.begin(), others.end());
  return members;
}

// Logits after every token, fed in chunks.
PlainModel::Rows logits_of(Context& context, const Model& model, const std::vector<int32_t>& tokens,
                           size_t chunk) {
  SequenceState state(model, kExact);
  PlainModel::Rows rows;
  for (size_t at = 0; at < tokens.size(); at += chunk) {
    const size_t count = std::min(chunk, tokens.size() - at);
    Tensor logits(DType::kF32, Shape{static_cast<int64_t>(count), model.config().vocab_size});
    std::fill_n(logits.as<float>(), logits.shape().elements(), NAN);
    const SequenceSlice slice{std::span(tokens).subspan(at, count), &state, Logits::kAll};
    forward(context, model, {&slice, 1}, logits);
    for (size_t i = 0; i < count; ++i) {
      const float* row = logits.view().row_as<float>(static_cast<int64_t>(i));
      rows.emplace_back(row, row + model.config().vocab_size);
    }
  }
  return rows;
}

double largest_difference(const PlainModel::Rows& a, const PlainModel::Rows& b) {
  double largest = 0;
  double difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t n = 0; n < a[i].size(); ++n) {
      if (!std::isfinite(b[i][n])) return INFINITY;
      largest = std::max(largest, std::fabs(a[i][n]));
      difference = std::max(difference, std::fabs(a[i][n] - b[i][n]));
    }
  }
  return difference / largest;
}

class Family : public testing::TestWithParam<FamilyMember> {
 protected:
  void SetUp() override {
    GetParam().change(config_);
    check_config(config_, GetParam().name);
    weights_ = std::make_shared<TestWeights>(config_, DType::kF32, 7);
    model_ = std::make_unique<Model>(context_, config_, weights_->weights, weights_);
  }

  Context context_{2};
  ModelConfig config_ = test_config();
  std::shared_ptr<TestWeights> weights_;
  std::unique_ptr<Model> model_;
};

// 60 tokens wrap the window of 24 more than twice.
TEST_P(Family, ComputesWhatTheFormulasSay) {
  const auto tokens = random_tokens(60, config_.vocab_size);
  const PlainModel::Rows expected = PlainModel(config_, weights_->weights).logits(tokens);
  EXPECT_LE(largest_difference(expected, logits_of(context_, *model_, tokens, 64)), 2e-5);
  EXPECT_LE(largest_difference(expected, logits_of(context_, *model_, tokens, 1)), 2e-5);
}

TEST_P(Family, PrefillThenDecodeIsPrefillOfAll) {
  const auto tokens = random_tokens(63, config_.vocab_size);
  const auto whole = logits_of(context_, *model_, tokens, 64);
  for (const size_t chunk : {1, 7, 31}) {
    EXPECT_LE(largest_difference(whole, logits_of(context_, *model_, tokens, chunk)), 2e-5);
  }
}

TEST_P(Family, AClearedStateIsAFreshOne) {
  const auto tokens = random_tokens(30, config_.vocab_size);
  SequenceState state(*model_, kExact);
  const SequenceSlice slice{tokens, &state, Logits::kLast};
  Tensor first(DType::kF32, Shape{1, config_.vocab_size});
  Tensor second(DType::kF32, Shape{1, config_.vocab_size});
  forward(context_, *model_, {&slice, 1}, first);
  state.clear();
  forward(context_, *model_, {&slice, 1}, second);
  EXPECT_EQ(std::memcmp(first.as<float>(), second.as<float>(),
                        static_cast<size_t>(config_.vocab_size) * sizeof(float)),
            0);
}

INSTANTIATE_TEST_SUITE_P(Members, Family, testing::ValuesIn(members()),
                         [](const auto& instance) { return std::string(instance.param.name); });

// The whole small sibling of the 76B, all 28 layers.
TEST(Tiny76b, PrefillThenDecodeIsPrefillOfAll) {
  Context context(2);
  const ModelConfig config = preset("tiny-76b");
  const auto model = test_model(context, config);
  const auto tokens = random_tokens(150, config.vocab_size);
  const auto whole = logits_of(context, *model, tokens, 64);
  EXPECT_LE(largest_difference(whole, logits_of(context, *model, tokens, 47)), 1e-4);
  EXPECT_LE(largest_difference(whole, logits_of(context, *model, tokens, 1)), 1e-4);
}

TEST(Sinks, ChangeWhatEveryPositionComputes) {
  Context context(1);
  ModelConfig config = test_config(Mixer::kWindow);
  config.sink_tokens = 4;
  const auto weights = std::make_shared<TestWeights>(config, DType::kF32, 3);
  const Model with(context, config, weights->weights, weights);
  config.sink_tokens = 0;
  const Model without(context, config, weights->weights, weights);
  const auto tokens = random_tokens(60, config.vocab_size);
  const auto a = logits_of(context, with, tokens, 64);
  const auto b = logits_of(context, without, tokens, 64);
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_GT(largest_difference({a[i]}, {b[i]}), 1e-4) << i;
  }
}

TEST(Sinks, TakeNoPositionOfTheText) {
  Context context(1);
  ModelConfig config = test_config();
  config.sink_tokens = 4;
  const auto model = test_model(context, config);
  SequenceState state(*model, kExact);
  EXPECT_EQ(state.position(), 0);
  const auto tokens = random_tokens(3, config.vocab_size);
  const SequenceSlice slice{tokens, &state, Logits::kNone};
  forward(context, *model, {&slice, 1}, {});
  EXPECT_EQ(state.position(), 3);
}

TEST(Experts, MappedAndCopiedGiveTheSameBits) {
  Context context(2);
  ModelConfig config = test_config();
  make_moe(config, 4, 2, 1);
  config.moe.expert_size = 64;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
    const auto weights = std::make_shared<TestWeights>(config, dtype, 3);
    const Model mapped(context, config, weights->weights, weights, {.experts = Residency::kMapped});
    const Model copied(context, config, weights->weights, weights, {.experts = Residency::kCopied});
    const auto tokens = random_tokens(40, config.vocab_size);
    for (const size_t chunk : {1, 40}) {
      EXPECT_EQ(logits_of(context, mapped, tokens, chunk),
                logits_of(context, copied, tokens, chunk))
          << name(dtype);
    }
  }
}

TEST(Experts, OneTokenReadsTheBytesOfTheChosenOnly) {
  Context context(1);
  ModelConfig config = test_config();
  make_moe(config, 8, 2, 1);
  const auto few = test_model(context, config);
  config.moe.experts_per_token = 8;
  const auto all = test_model(context, config);
  const int64_t expert = 3 * config.moe.expert_size * config.hidden_size * 4;
  EXPECT_EQ(all->bytes_per_token() - few->bytes_per_token(), config.num_layers() * 6 * expert);
}

}  // namespace
}  // namespace spb::model
