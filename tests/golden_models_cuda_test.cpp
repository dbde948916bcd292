// The golden models of the reference on a CUDA device; golden_models_test.cpp runs them on the CPU.
#include <gtest/gtest.h>

#include <memory>

#include "golden/golden_logits.h"

namespace spb::golden {
namespace {

constexpr double kF32Tolerance = 1e-5;
// Values between operators are rounded to bf16, as those behind the stored logits were.
constexpr double kBf16Tolerance = 1e-2;

class GoldenModelCuda : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string reason = cuda::unusable_reason(0);
    if (!reason.empty()) GTEST_SKIP() << reason;
    context_ = std::make_unique<Context>(Device{Device::Type::kCuda, 0}, 1);
  }

  void expect_agreement(DType dtype, const std::string& run, double tolerance) {
    context_->set_activation_dtype(dtype);
    TemporaryFolder folder;
    write_config(case_, dtype, io::Json::object(), folder.path());
    write_weights(case_, dtype, folder.path());
    const auto model = model::Model::load(*context_, folder.path());
    const Expected expected = case_.expected(run);
    const auto total = static_cast<int64_t>(case_.tokens.size());
    for (const auto& [prompt, chunks] : std::vector<std::pair<int64_t, std::vector<int64_t>>>{
             {total, {total}}, {total, {7, 1, 19, 2, 31}}, {case_.prefill, {case_.prefill}}}) {
      model::SequenceState state(*model, {total, total, dtype});
      const Tensor logits = all_logits(*context_, *model, case_.tokens, state, prompt, chunks);
      EXPECT_LE(difference(expected, logits), tolerance)
          << "prompt of " << prompt << ", first chunk " << chunks[0];
    }
  }

  Case case_ = read_case(GetParam());
  std::unique_ptr<Context> context_;
};

TEST_P(GoldenModelCuda, Float32AgreesHoweverThePromptIsCut) {
  expect_agreement(DType::kF32, "f32.default", kF32Tolerance);
}

TEST_P(GoldenModelCuda, BFloat16AgreesHoweverThePromptIsCut) {
  expect_agreement(DType::kBF16, "bf16.default", kBf16Tolerance);
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenModelCuda, testing::ValuesIn(case_names()),
                         [](const testing::TestParamInfo<std::string>& instance) {
                           return instance.param;
                         });

}  // namespace
}  // namespace spb::golden
