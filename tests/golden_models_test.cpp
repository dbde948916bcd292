// Logits of small random models against the reference implementation and transformers, however the
// prompt is cut: at once, shortened around the window, in odd chunks, or token by token.
#include <gtest/gtest.h>

#include <memory>

#include "golden/golden_logits.h"

namespace spb::golden {
namespace {

// Relative to the largest |logit| of a run.
constexpr double kF32Tolerance = 1e-5;
constexpr double kBf16Tolerance = 1e-2;  // the stored logits were rounded after every operation

class GoldenModel : public testing::TestWithParam<std::string> {
 protected:
  // Writes the model as a Hugging Face folder and loads it.
  void load(DType dtype, const io::Json& extra = io::Json::object()) {
    dtype_ = dtype;
    write_config(case_, dtype, extra, folder_.path());
    write_weights(case_, dtype, folder_.path());
    model_ = model::Model::load(context_, folder_.path());
  }

  model::SequenceState new_state() {
    const auto total = static_cast<int64_t>(case_.tokens.size());
    return model::SequenceState(*model_, {total, total, dtype_});
  }

  // Difference with a prompt of `prompt` tokens in chunks of the given sizes, decoding after it.
  double compare(const Expected& expected, int64_t prompt,
                 const std::vector<int64_t>& chunk_sizes) {
    model::SequenceState state = new_state();
    const Tensor logits = all_logits(context_, *model_, case_.tokens, state, prompt, chunk_sizes);
    return difference(expected, logits);
  }

  void expect_every_cut_agrees(const Expected& expected, double tolerance) {
    const auto total = static_cast<int64_t>(case_.tokens.size());
    EXPECT_LE(compare(expected, total, {total}), tolerance) << "prefill at once";
    EXPECT_LE(compare(expected, total, {7, 1, 19, 2, 31}), tolerance) << "odd chunks";
    EXPECT_LE(compare(expected, total, {33, 5}), tolerance) << "long and short chunks";
    EXPECT_LE(compare(expected, case_.prefill, {case_.prefill}), tolerance)
        << "prefill, then decode";
    EXPECT_LE(compare(expected, 1, {1}), tolerance) << "decode from the first token";
  }

  Case case_ = read_case(GetParam());
  TemporaryFolder folder_;
  Context context_{1};  // the models are small: waiting for a team would take longer
  DType dtype_ = DType::kF32;
  std::unique_ptr<model::Model> model_;
};

// The models with window layers.
class GoldenWindowModel : public GoldenModel {};

TEST_P(GoldenModel, Float32AgreesHoweverThePromptIsCut) {
  load(DType::kF32);
  expect_every_cut_agrees(case_.expected("f32.default"), kF32Tolerance);
}

TEST_P(GoldenModel, BFloat16AgreesHoweverThePromptIsCut) {
  load(DType::kBF16);
  expect_every_cut_agrees(case_.expected("bf16.default"), kBf16Tolerance);
}

// Prompts shorter than, as long as and longer than the window, each alone in a fresh state.
TEST_P(GoldenModel, PromptsOfEveryStoredLengthAgree) {
  Context team(3);
  load(DType::kF32);
  const Expected expected = case_.expected("f32.default");
  const std::span<const int32_t> tokens = case_.tokens;
  for (const int64_t last : expected.positions) {
    model::SequenceState state = new_state();
    const Tensor logits = all_logits(team, *model_, tokens.first(static_cast<size_t>(last) + 1),
                                     state, last + 1, {last + 1});
    EXPECT_LE(difference(expected, logits, last), kF32Tolerance) << last + 1 << " tokens";
  }
}

TEST_P(GoldenWindowModel, OneKeyMoreInTheWindowAgreesWithTheReferencePrefill) {
  load(DType::kF32, {{"window_inclusive_extra", true}});
  expect_every_cut_agrees(case_.expected("f32.inclusive_extra"), kF32Tolerance);
  EXPECT_GT(compare(case_.expected("f32.default"), case_.prefill, {case_.prefill}), 1e-3)
      << "the extra key should show";
}

// The reference shows window + 1 keys in prefill and window keys in decode.
TEST_P(GoldenWindowModel, NarrowingTheWindowAfterPrefillReproducesTheReferenceGeneration) {
  load(DType::kF32, {{"window_inclusive_extra", true}});
  const std::span<const int32_t> tokens = case_.tokens;
  const auto prompt = static_cast<size_t>(case_.prefill);
  model::SequenceState state = new_state();
  all_logits(context_, *model_, tokens.first(prompt), state, case_.prefill, {case_.prefill});
  for (int64_t i = 0; i < model_->config().num_layers(); ++i) {
    auto* cache = std::get_if<model::KeyValueCache>(&state.mixer(i, 0));
    if (cache != nullptr) cache->window_size = model_->config().window_size;
  }
  const Tensor decoded = all_logits(context_, *model_, tokens.subspan(prompt), state, 0, {1});
  Expected expected = case_.expected("f32.reference_generate");
  for (int64_t& position : expected.positions) position -= case_.prefill;
  EXPECT_LE(difference(expected, decoded), kF32Tolerance);
}

std::string instance_name(const testing::TestParamInfo<std::string>& instance) {
  return instance.param;
}

std::vector<std::string> window_case_names() {
  std::vector<std::string> names = case_names();
  std::erase_if(names, [](const std::string& name) { return !read_case(name).has_window(); });
  return names;
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenModel, testing::ValuesIn(case_names()), instance_name);
INSTANTIATE_TEST_SUITE_P(Cases, GoldenWindowModel, testing::ValuesIn(window_case_names()),
                         instance_name);

}  // namespace
}  // namespace spb::golden
