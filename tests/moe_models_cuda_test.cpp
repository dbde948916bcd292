// Models with experts and sink tokens on a CUDA device, against the CPU.
#include <gtest/gtest.h>

#include <map>

#include "convert/compare_models.h"
#include "convert/convert.h"
#include "convert/synthesize.h"
#include "core/transfer.h"
#include "golden/golden_recipe.h"
#include "model/decoder.h"
#include "model/forward.h"
#include "model/test_family.h"
#include "model/test_model.h"

namespace spb::model {
namespace {

std::vector<FamilyMember> members() {
  std::vector<FamilyMember> members = sparse_members();
  members.push_back({"like_76b", [](ModelConfig& c) { make_like_76b(c, 32); }, false});
  return members;
}

// Sizes that the kernels of every device take.
ModelConfig device_config() {
  ModelConfig config = test_config();
  config.hidden_size = 128;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  return config;
}

// Logits after every token, fed in chunks.
Tensor logits_of(Context& context, const Model& model, const std::vector<int32_t>& tokens,
                 size_t chunk, DType cache, const ForwardHooks& hooks = {}) {
  SequenceState state(model, {.max_context = 256, .max_chunk = 128, .cache_dtype = cache});
  const int64_t vocab = model.config().vocab_size;
  Tensor all(DType::kF32, Shape{static_cast<int64_t>(tokens.size()), vocab});
  for (size_t at = 0; at < tokens.size(); at += chunk) {
    const size_t count = std::min(chunk, tokens.size() - at);
    const SequenceSlice slice{std::span(tokens).subspan(at, count), &state, Logits::kAll};
    forward(context, model, {&slice, 1},
            all.view().rows(static_cast<int64_t>(at), static_cast<int64_t>(count)), hooks);
  }
  return all;
}

// ||a - b|| / ||b|| of each row; infinity where a is not finite.
std::vector<double> row_errors(const Tensor& a, const Tensor& b) {
  std::vector<double> errors;
  for (int64_t i = 0; i < b.shape()[0]; ++i) {
    double difference = 0;
    double size = 0;
    for (int64_t n = 0; n < b.shape()[1]; ++n) {
      const double x = a.view().row_as<float>(i)[n];
      const double y = b.view().row_as<float>(i)[n];
      difference += std::isfinite(x) ? (x - y) * (x - y) : INFINITY;
      size += y * y;
    }
    errors.push_back(std::sqrt(difference / size));
  }
  return errors;
}

double largest(const std::vector<double>& errors) {
  return *std::max_element(errors.begin(), errors.end());
}
double median(std::vector<double> errors) {
  std::nth_element(errors.begin(), errors.begin() + std::ssize(errors) / 2, errors.end());
  return errors[errors.size() / 2];
}

class MoeModelsCuda : public testing::TestWithParam<FamilyMember> {
 protected:
  void SetUp() override {
    const std::string reason = cuda::unusable_reason(0);
    if (!reason.empty()) GTEST_SKIP() << reason;
    device_ = std::make_unique<Context>(Device{Device::Type::kCuda, 0}, 1);
    GetParam().change(config_);
    check_config(config_, GetParam().name);
  }

  std::unique_ptr<Model> make(Context& context, DType dtype) {
    return test_model(context, config_, dtype, 7);
  }

  Context cpu_{2};
  std::unique_ptr<Context> device_;
  ModelConfig config_ = device_config();
};

TEST_P(MoeModelsCuda, Float32IsTheCpu) {
  device_->set_activation_dtype(DType::kF32);
  const auto here = make(cpu_, DType::kF32);
  const auto there = make(*device_, DType::kF32);
  const auto tokens = random_tokens(100, config_.vocab_size);
  const Tensor want = logits_of(cpu_, *here, tokens, 100, DType::kF32);
  for (const size_t chunk : {100, 7, 1}) {
    const Tensor got = logits_of(*device_, *there, tokens, chunk, DType::kF32);
    EXPECT_LE(largest(row_errors(got, want)), 3e-5) << chunk;
  }
}

// A router that is nearly undecided may decide otherwise after a rounding; then a token differs.
TEST_P(MoeModelsCuda, BFloat16IsNearTheCpu) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const auto here = make(cpu_, dtype);
    const auto there = make(*device_, dtype);
    const auto tokens = random_tokens(100, config_.vocab_size);
    const Tensor want = logits_of(cpu_, *here, tokens, 100, DType::kF32);
    for (const size_t chunk : {100, 7, 1}) {
      const auto errors =
          row_errors(logits_of(*device_, *there, tokens, chunk, DType::kBF16), want);
      EXPECT_LE(median(errors), 2e-2) << chunk;
      if (GetParam().steady) {
        EXPECT_LE(largest(errors), 4e-2) << chunk;
      }
    }
  }
}

TEST_P(MoeModelsCuda, ASequenceIsAloneWhatItIsInABatch) {
  const auto model = make(*device_, DType::kBF16);
  const int64_t vocab = config_.vocab_size;
  const StateOptions options{.max_context = 64, .max_chunk = 32};
  std::vector<std::unique_ptr<SequenceState>> together, alone;
  std::vector<std::vector<int32_t>> prompts;
  for (int64_t s = 0; s < 3; ++s) {
    prompts.push_back(random_tokens(20 + s, vocab));
    for (auto* states : {&together, &alone}) {
      states->push_back(std::make_unique<SequenceState>(*model, options));
      const SequenceSlice slice{prompts.back(), states->back().get(), Logits::kNone};
      forward(*device_, *model, {&slice, 1}, {});
    }
  }
  for (int32_t token = 0; token < 5; ++token) {
    Tensor batch(DType::kF32, Shape{3, vocab});
    std::vector<SequenceSlice> slices;
    for (size_t s = 0; s < 3; ++s) slices.push_back({{&token, 1}, together[s].get()});
    forward(*device_, *model, slices, batch);
    for (int64_t s = 0; s < 3; ++s) {
      Tensor one(DType::kF32, Shape{1, vocab});
      const SequenceSlice slice{{&token, 1}, alone[static_cast<size_t>(s)].get()};
      forward(*device_, *model, {&slice, 1}, one);
      EXPECT_EQ(std::memcmp(one.as<float>(), batch.view().row(s), static_cast<size_t>(one.bytes())),
                0)
          << s << " after " << token;
    }
  }
}

// A decoder records what a step does; the choices of experts differ from step to step.
TEST_P(MoeModelsCuda, RecordedStepsAreThoseOfForward) {
  const auto model = make(*device_, DType::kBF16);
  const int64_t vocab = config_.vocab_size;
  std::vector<std::unique_ptr<SequenceState>> recorded, own;
  std::vector<SequenceState*> pointers;
  for (int s = 0; s < 2; ++s) {
    own.push_back(std::make_unique<SequenceState>(*model, StateOptions{64, 32}));
    recorded.push_back(std::make_unique<SequenceState>(*model, StateOptions{64, 32}));
    pointers.push_back(recorded.back().get());
  }
  Decoder decoder(*device_, *model, pointers);
  for (int32_t step = 0; step < 20; ++step) {
    const int32_t ids[] = {step * 7 % 67, (step * 11 + 3) % 67};
    Tensor got(DType::kF32, Shape{2, vocab});
    Tensor want(DType::kF32, Shape{2, vocab});
    to_host(*device_, decoder.step(ids), got);
    const SequenceSlice slices[] = {{{&ids[0], 1}, own[0].get()}, {{&ids[1], 1}, own[1].get()}};
    forward(*device_, *model, slices, want);
    ASSERT_EQ(std::memcmp(got.as<float>(), want.as<float>(), static_cast<size_t>(want.bytes())), 0)
        << step;
  }
}

TEST_P(MoeModelsCuda, AClearedStateIsAFreshOne) {
  const auto model = make(*device_, DType::kBF16);
  const auto tokens = random_tokens(30, config_.vocab_size);
  SequenceState state(*model, {.max_context = 64, .max_chunk = 32});
  const SequenceSlice slice{tokens, &state};
  Tensor first(DType::kF32, Shape{1, config_.vocab_size});
  Tensor second(DType::kF32, first.shape());
  forward(*device_, *model, {&slice, 1}, first);
  state.clear();
  forward(*device_, *model, {&slice, 1}, second);
  EXPECT_EQ(std::memcmp(first.as<float>(), second.as<float>(), static_cast<size_t>(first.bytes())),
            0);
}

// Caches of int8 read sinks of int8.
TEST_P(MoeModelsCuda, SinksFitEveryCache) {
  const auto here = make(cpu_, DType::kF32);
  const auto there = make(*device_, DType::kF32);
  device_->set_activation_dtype(DType::kF32);
  const auto tokens = random_tokens(40, config_.vocab_size);
  for (const DType cache : {DType::kF16, DType::kBF16, DType::kI8}) {
    const Tensor want = logits_of(cpu_, *here, tokens, 40, cache);
    const Tensor got = logits_of(*device_, *there, tokens, 40, cache);
    EXPECT_LE(median(row_errors(got, want)), cache == DType::kI8 ? 1e-2 : 4e-3) << name(cache);
  }
}

struct Choices : ExpertObserver {
  void on_choices(int64_t layer, const ExpertChoices& choices) override {
    for (int64_t i = 0; i < choices.experts.shape()[0]; ++i) {
      for (int64_t j = 0; j < choices.experts.shape()[1]; ++j) {
        experts[layer].push_back(choices.experts.row_as<int32_t>(i)[j]);
        EXPECT_TRUE(std::isfinite(choices.probabilities.row_as<float>(i)[j]));
      }
      EXPECT_TRUE(std::isfinite(choices.logits.row_as<float>(i)[0]));
    }
  }
  std::map<int64_t, std::vector<int32_t>> experts;
};

TEST_P(MoeModelsCuda, AnObserverSeesWhatItSeesOnTheCpu) {
  device_->set_activation_dtype(DType::kF32);
  const auto tokens = random_tokens(40, config_.vocab_size);
  Choices here, there;
  ForwardHooks hooks;
  hooks.expert_observer = &here;
  logits_of(cpu_, *make(cpu_, DType::kF32), tokens, 40, DType::kF32, hooks);
  hooks.expert_observer = &there;
  logits_of(*device_, *make(*device_, DType::kF32), tokens, 40, DType::kF32, hooks);
  EXPECT_EQ(here.experts, there.experts);
}

TEST_P(MoeModelsCuda, BytesAreThoseOfTheWeights) {
  const auto here = make(cpu_, DType::kQ8_0);
  const auto there = make(*device_, DType::kQ8_0);
  EXPECT_FALSE(there->experts_are_mapped());
  // Norms and routers are not quantized; the device pads nothing.
  EXPECT_NEAR(static_cast<double>(there->expert_bytes_per_token()),
              static_cast<double>(here->expert_bytes_per_token()),
              0.1 * static_cast<double>(here->expert_bytes_per_token()));
  for (int64_t i = 0; i < config_.num_layers(); ++i) {
    for (const ops::MatmulWeight& weight : there->layer(i).experts.weights) {
      EXPECT_TRUE(weight.owns_memory());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Members, MoeModelsCuda, testing::ValuesIn(members()),
                         [](const auto& instance) { return std::string(instance.param.name); });

// An upcycled model is the dense one it came from, on the device too.
TEST(UpcycledOnCuda, IsTheDenseModel) {
  const std::string reason = cuda::unusable_reason(0);
  if (!reason.empty()) GTEST_SKIP() << reason;
  Context cpu(2);
  Context device(Device{Device::Type::kCuda, 0}, 1);
  device.set_activation_dtype(DType::kF32);
  const golden::TemporaryFolder folder;
  convert::synthesize(cpu, preset("tiny-hybrid"), {.format = DType::kF32}, folder.file("a.gguf"));
  convert::ConvertSettings settings;
  MoeConfig& moe = settings.upcycle.emplace().moe;
  moe.num_experts = 8;
  moe.experts_per_token = 2;
  moe.num_shared = 1;
  convert::convert_model(cpu, folder.file("a.gguf"), folder.file("b.gguf"), settings);
  const auto found = convert::compare_models(device, folder.file("a.gguf"), folder.file("b.gguf"));
  EXPECT_LE(found.error, 1e-5);
  EXPECT_EQ(found.same_choice, found.tokens);
}

}  // namespace
}  // namespace spb::model
