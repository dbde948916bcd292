#include "model/forward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/test_model.h"

namespace spb::model {
namespace {

constexpr StateOptions kExact{.max_context = 256, .max_chunk = 64, .cache_dtype = DType::kF32};

// Logits of every position, feeding chunks of the given sizes (the last one repeats).
std::vector<float> logits_by_chunks(Context& context, const Model& model,
                                    const std::vector<int32_t>& tokens,
                                    const std::vector<int64_t>& chunks,
                                    const StateOptions& options = kExact) {
  const int64_t vocab = model.config().vocab_size;
  SequenceState state(model, options);
  std::vector<float> all;
  size_t next = 0;
  for (size_t at = 0; at < tokens.size();) {
    const auto count = std::min<size_t>(static_cast<size_t>(chunks[next]), tokens.size() - at);
    if (next + 1 < chunks.size()) ++next;
    Tensor logits(DType::kF32, Shape{static_cast<int64_t>(count), vocab});
    std::fill_n(logits.as<float>(), logits.shape().elements(), NAN);
    const SequenceSlice slice{std::span(tokens).subspan(at, count), &state, Logits::kAll};
    forward(context, model, {&slice, 1}, logits);
    all.insert(all.end(), logits.as<float>(), logits.as<float>() + logits.shape().elements());
    at += count;
  }
  return all;
}

void expect_close(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  double largest = 0;
  double difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(std::isfinite(a[i]) && std::isfinite(b[i])) << "at " << i;
    largest = std::max(largest, std::fabs(static_cast<double>(a[i])));
    difference = std::max(difference, std::fabs(static_cast<double>(a[i]) - b[i]));
  }
  EXPECT_GT(largest, 0.1);
  EXPECT_LE(difference, tolerance * largest);
}

class ForwardTest : public testing::TestWithParam<std::optional<Mixer>> {};

// Sequences shorter than, equal to and longer than the window of 24, cut in every way.
TEST_P(ForwardTest, PrefillAtOnceChunkedAndTokenByTokenAgree) {
  Context context(2);
  const std::unique_ptr<Model> model = test_model(context, test_config(GetParam()));
  for (const int64_t length : {1, 23, 24, 25, 26, 60}) {
    const auto tokens = random_tokens(length, 67, static_cast<uint64_t>(length));
    const auto whole = logits_by_chunks(context, *model, tokens, {64});
    for (const std::vector<int64_t>& chunks :
         {std::vector<int64_t>{1}, {7}, {17}, {13, 1}, {length - 1 > 0 ? length - 1 : 1, 1}}) {
      expect_close(whole, logits_by_chunks(context, *model, tokens, chunks), 2e-5);
    }
  }
}

TEST_P(ForwardTest, SequencesInABatchEqualThemselvesAlone) {
  Context context(2);
  const ModelConfig config = test_config(GetParam());
  const std::unique_ptr<Model> model = test_model(context, config);
  constexpr int kSequences = 3;
  std::vector<SequenceState> states;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<float>> alone;
  for (int i = 0; i < kSequences; ++i) {
    states.emplace_back(*model, kExact);
    tokens.push_back(random_tokens(5 + 20 * i, 67, static_cast<uint64_t>(100 + i)));
    const auto all = logits_by_chunks(context, *model, tokens.back(), {4, 64});
    alone.emplace_back(all.end() - 67, all.end());
  }
  // First four tokens of each together, then the rest of each together.
  std::vector<SequenceSlice> slices;
  for (size_t i = 0; i < kSequences; ++i) {
    slices.push_back({std::span(tokens[i]).first(4), &states[i], Logits::kNone});
  }
  forward(context, *model, slices, {});
  for (size_t i = 0; i < kSequences; ++i) {
    slices[i] = {std::span(tokens[i]).subspan(4), &states[i], Logits::kLast};
  }
  Tensor logits(DType::kF32, Shape{kSequences, 67});
  forward(context, *model, slices, logits);
  for (size_t i = 0; i < kSequences; ++i) {
    const float* row = logits.view().row_as<float>(static_cast<int64_t>(i));
    expect_close(alone[i], std::vector<float>(row, row + 67), 2e-5);
  }
}

// The last layer leaves out rows without logits; what they leave behind is the same.
TEST_P(ForwardTest, RowsThatNobodyAsksForChangeNoLogits) {
  Context context(2);
  const std::unique_ptr<Model> model = test_model(context, test_config(GetParam()));
  const int64_t vocab = model->config().vocab_size;
  std::vector<SequenceState> states;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<float> expected;
  for (const int64_t length : {41, 30, 58}) {
    states.emplace_back(*model, kExact);
    tokens.push_back(random_tokens(length, vocab, static_cast<uint64_t>(length)));
    const auto all = logits_by_chunks(context, *model, tokens.back(), {64});
    // One row of the first, none of the second, all of the last chunk of the third.
    const int64_t rows = length == 41 ? 1 : length == 30 ? 0 : length - 29;
    expected.insert(expected.end(), all.end() - rows * vocab, all.end());
  }
  std::vector<SequenceSlice> slices;
  for (size_t i = 0; i < states.size(); ++i) {
    slices.push_back({std::span(tokens[i]).first(29), &states[i], Logits::kNone});
  }
  forward(context, *model, slices, {});
  constexpr Logits kAsked[] = {Logits::kLast, Logits::kNone, Logits::kAll};
  for (size_t i = 0; i < states.size(); ++i) {
    slices[i] = {std::span(tokens[i]).subspan(29), &states[i], kAsked[i]};
  }
  Tensor logits(DType::kF32, Shape{logits_rows(slices), vocab});
  std::fill_n(logits.as<float>(), logits.shape().elements(), NAN);
  forward(context, *model, slices, logits);
  expect_close(expected, {logits.as<float>(), logits.as<float>() + logits.shape().elements()},
               2e-5);
}

TEST_P(ForwardTest, AClearedStateIsAFreshOne) {
  Context context(1);
  const ModelConfig config = test_config(GetParam());
  const std::unique_ptr<Model> model = test_model(context, config);
  SequenceState state(*model, kExact);
  const auto tokens = random_tokens(30, 67, 3);
  const SequenceSlice slice{tokens, &state, Logits::kLast};
  Tensor first(DType::kF32, Shape{1, 67});
  Tensor second(DType::kF32, Shape{1, 67});
  forward(context, *model, {&slice, 1}, first);
  state.clear();
  forward(context, *model, {&slice, 1}, second);
  EXPECT_EQ(std::memcmp(first.as<float>(), second.as<float>(), 67 * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Mixers, ForwardTest,
                         testing::Values(std::nullopt, Mixer::kFull, Mixer::kWindow,
                                         Mixer::kLinear),
                         [](const auto& instance) {
                           return instance.param ? std::string(name(*instance.param)) : "hybrid";
                         });

TEST(Forward, TheNumberOfThreadsDoesNotChangeABit) {
  Context one(1);
  Context three(3);
  for (const DType dtype : {DType::kF32, DType::kQ8_0}) {
    const auto model_one = test_model(one, test_config(), dtype);
    const auto model_three = test_model(three, test_config(), dtype);
    const auto tokens = random_tokens(50, 67, 9);
    EXPECT_EQ(logits_by_chunks(one, *model_one, tokens, {40, 1}),
              logits_by_chunks(three, *model_three, tokens, {40, 1}));
  }
}

// 16-bit caches and quantised weights stay near the f32 model.
TEST(Forward, HalfCachesStayNearExactOnes) {
  Context context(2);
  const auto model = test_model(context, test_config());
  const auto tokens = random_tokens(50, 67, 11);
  const auto exact = logits_by_chunks(context, *model, tokens, {64});
  StateOptions half = kExact;
  half.cache_dtype = DType::kF16;
  expect_close(exact, logits_by_chunks(context, *model, tokens, {64}, half), 5e-3);
  half.cache_dtype = DType::kBF16;
  expect_close(exact, logits_by_chunks(context, *model, tokens, {64}, half), 3e-2);
}

// Codes of 8 bits are as far from the numbers as their steps, however the text is cut; a model that
// does not spike keeps its 16 bits unless asked.
TEST(Forward, EightBitCachesStayNearExactOnesAndAreNoDefault) {
  Context context(2);
  for (const std::optional<Mixer> mixer : {std::optional<Mixer>(), std::optional(Mixer::kFull)}) {
    ModelConfig config = test_config(mixer);
    for (const int64_t sinks : {0, 5}) {
      config.sink_tokens = sinks;
      const auto model = test_model(context, config);
      const auto tokens = random_tokens(60, 67, 11);
      const auto exact = logits_by_chunks(context, *model, tokens, {64});
      StateOptions codes = kExact;
      codes.cache_dtype = DType::kI8;
      const auto whole = logits_by_chunks(context, *model, tokens, {64}, codes);
      expect_close(exact, whole, 3e-2);
      expect_close(whole, logits_by_chunks(context, *model, tokens, {40, 1}, codes), 2e-2);
      EXPECT_EQ(cache_dtype(config, {}), DType::kF16);
    }
  }
}

// Filled instead of read: a state of codes goes on like any other, and a clear one starts again.
TEST(Forward, StatesOfCodesAreFilledAndCleared) {
  Context context(1);
  const auto model = test_model(context, test_config(Mixer::kFull));
  StateOptions codes = kExact;
  codes.cache_dtype = DType::kI8;
  SequenceState state(*model, codes);
  Tensor logits(DType::kF32, Shape{1, 67});
  const auto tokens = random_tokens(20, 67, 11);
  const SequenceSlice slice{tokens, &state, Logits::kLast};
  forward(context, *model, {&slice, 1}, logits);
  const std::vector<float> expected(logits.as<float>(), logits.as<float>() + 67);
  state.clear();
  state.fill_random(100, 3);
  forward(context, *model, {&slice, 1}, logits);
  EXPECT_EQ(state.position(), 120);
  for (int64_t i = 0; i < 67; ++i) EXPECT_TRUE(std::isfinite(logits.as<float>()[i]));
  state.clear();
  forward(context, *model, {&slice, 1}, logits);
  EXPECT_EQ(expected, std::vector<float>(logits.as<float>(), logits.as<float>() + 67));
}

TEST(Forward, RefusesCachesOfOtherTypesAndNumbersThatCodesCannotHold) {
  Context context(1);
  const ModelConfig config = test_config(Mixer::kFull);
  auto weights = std::make_shared<TestWeights>(config, DType::kF32, 5);
  StateOptions codes = kExact;
  codes.cache_dtype = DType::kQ8_0;
  const Model good(context, config, weights->weights, weights);
  EXPECT_THROW(SequenceState(good, codes), Error);
  auto& values = const_cast<std::byte&>(*weights->weights.layers[1].v.weight.data());
  reinterpret_cast<float*>(&values)[0] = NAN;
  const Model bad(context, config, weights->weights, weights);
  codes.cache_dtype = DType::kI8;
  SequenceState state(bad, codes);
  const auto tokens = random_tokens(3, 67, 1);
  const SequenceSlice slice{tokens, &state, Logits::kNone};
  try {
    forward(context, bad, {&slice, 1}, {});
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("layer 1, keys and values: append_to_cache: v: row 0"),
              std::string::npos)
        << error.what();
  }
}

// The reference prefill shows one key more; the flag must change what is beyond the window only.
TEST(Forward, TheExtraWindowKeyIsVisibleFromTheFirstPositionBeyondTheWindow) {
  Context context(1);
  ModelConfig config = test_config(Mixer::kWindow);
  config.layers.resize(1);
  const auto plain = test_model(context, config);
  config.window_inclusive_extra = true;
  const auto extra = test_model(context, config);
  const auto tokens = random_tokens(26, 67, 13);
  const auto a = logits_by_chunks(context, *plain, tokens, {64});
  const auto b = logits_by_chunks(context, *extra, tokens, {64});
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 24 * 67, b.begin()));
  EXPECT_NE(std::vector<float>(a.begin() + 24 * 67, a.end()),
            std::vector<float>(b.begin() + 24 * 67, b.end()));
}

TEST(Forward, RefusesBadTokensAndLeavesTheStateAlone) {
  Context context(1);
  const ModelConfig config = test_config();
  const auto model = test_model(context, config);
  SequenceState state(*model, kExact);
  Tensor logits(DType::kF32, Shape{1, 67});
  for (const int32_t bad : {-1, 67, std::numeric_limits<int32_t>::max()}) {
    const std::vector<int32_t> tokens = {1, bad};
    const SequenceSlice slice{tokens, &state, Logits::kLast};
    EXPECT_THROW(forward(context, *model, {&slice, 1}, logits), Error);
  }
  const std::vector<int32_t> none;
  const std::vector<int32_t> many(65, 1);
  const SequenceSlice empty{none, &state, Logits::kLast};
  const SequenceSlice long_slice{many, &state, Logits::kLast};
  EXPECT_THROW(forward(context, *model, {&empty, 1}, logits), Error);
  EXPECT_THROW(forward(context, *model, {&long_slice, 1}, logits), Error);
  EXPECT_EQ(state.position(), 0);
}

TEST(Forward, AFullContextIsAnErrorOnlyWithFullAttention) {
  Context context(1);
  const StateOptions small{.max_context = 8, .max_chunk = 64, .cache_dtype = DType::kF32};
  for (const bool full : {true, false}) {
    const ModelConfig config = full ? test_config(Mixer::kFull) : test_config();
    const auto model = test_model(context, config);
    SequenceState state(*model, small);
    const auto tokens = random_tokens(9, 67, 1);
    const SequenceSlice slice{tokens, &state, Logits::kNone};
    if (full) {
      EXPECT_THROW(forward(context, *model, {&slice, 1}, {}), Error);
    } else {
      EXPECT_NO_THROW(forward(context, *model, {&slice, 1}, {}));
    }
  }
}

}  // namespace
}  // namespace spb::model
