// W8ASpike models in files: what conversion and quantisation keep, and what loading refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>

#include "convert/convert.h"
#include "convert/synthesize.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/test_errors.h"
#include "golden/command.h"
#include "golden/golden_logits.h"
#include "io/checkpoint.h"
#include "model/open_model.h"

namespace spb {
namespace {

using test::message_of;

using model::SpikeProfile;

constexpr SpikeProfile kProfiles[] = {SpikeProfile::kExactInteger, SpikeProfile::kReference,
                                      SpikeProfile::kReport};

// Of all tokens, in one forward call.
std::vector<float> logits_of(Context& context, const std::string& path,
                             std::span<const int32_t> tokens, SpikeProfile profile) {
  const auto model = model::Model::load(context, path, {.profile = profile});
  const auto count = static_cast<int64_t>(tokens.size());
  model::SequenceState state(*model, {count, count, DType::kF32});
  const Tensor logits = golden::all_logits(context, *model, tokens, state, count, {count});
  return {logits.as<float>(), logits.as<float>() + logits.shape().elements()};
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
  }
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

// Conversion of published checkpoints.
class SpikingConversion : public testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(SpikingConversion, KeepsEveryCode) {
  const auto& [name, dtype] = GetParam();
  const golden::Case golden = golden::read_case(name, "spiking");
  const golden::TemporaryFolder folder;
  golden::write_config(golden, dtype, io::Json::object(), folder.path());
  golden::write_weights(golden, dtype, folder.path());
  Context context(2);
  const std::string file = folder.file("once.gguf");
  const convert::ConvertResult result = convert::convert_model(context, folder.path(), file, {});
  convert::convert_model(context, file, folder.file("twice.gguf"), {});
  for (const SpikeProfile profile : kProfiles) {
    // Codes keep their values in f32: a file does not say that the checkpoint rounded to bf16.
    if (profile == SpikeProfile::kReference && dtype == DType::kBF16) continue;
    const auto original = logits_of(context, folder.path(), golden.tokens, profile);
    for (const std::string& path : {file, folder.file("twice.gguf")}) {
      EXPECT_TRUE(original == logits_of(context, path, golden.tokens, profile))
          << path << ", profile " << static_cast<int>(profile);
    }
  }
  int64_t codes = 0;
  int64_t beyond = 0;
  for (const convert::CodeReport& report : result.codes) {
    EXPECT_GT(report.beyond, 0) << report.tensor;
    codes += report.codes;
    beyond += report.beyond;
  }
  // q, k, v, o, gate, up; and the decay gate of linear layers.
  EXPECT_EQ(static_cast<int64_t>(result.codes.size()),
            6 * result.config.num_layers() + result.config.layers_with(model::Mixer::kLinear));
  EXPECT_GT(static_cast<double>(beyond), 0.002 * static_cast<double>(codes));
  EXPECT_LT(static_cast<double>(beyond), 0.005 * static_cast<double>(codes));
}

INSTANTIATE_TEST_SUITE_P(Cases, SpikingConversion,
                         testing::Combine(testing::Values("linear_g2_d128", "hybrid_g2_d64"),
                                          testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& instance) {
                           return std::get<0>(instance.param) + "_" +
                                  std::string(name(std::get<1>(instance.param)));
                         });

// Quantisation of dense models.
class SpikingQuantization : public testing::Test {
 protected:
  std::vector<int32_t> text(int64_t vocab, int64_t count, uint64_t seed) {
    Rng rng(seed);
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i) {
      tokens.push_back(static_cast<int32_t>(rng.uniform() * static_cast<double>(vocab)));
    }
    return tokens;
  }

  // The rms difference from the dense model, relative to the rms of its logits.
  void expect_near_dense(const model::ModelConfig& config, const convert::SpikeSettings& settings,
                         double bound) {
    const std::string dense = folder_.file("dense.gguf");
    const std::string spiking = folder_.file("spiking.gguf");
    convert::synthesize(context_, config, {.format = DType::kF32}, dense);
    const convert::ConvertResult result =
        convert::convert_model(context_, dense, spiking, {.spikes = settings, .overwrite = true});
    for (const convert::CodeReport& report : result.codes) EXPECT_EQ(report.beyond, 0);
    const std::vector<int32_t> tokens = text(config.vocab_size, 30, 5);
    const auto wanted = logits_of(context_, dense, tokens, SpikeProfile::kExactInteger);
    for (const SpikeProfile profile : kProfiles) {
      const auto got = logits_of(context_, spiking, tokens, profile);
      double error = 0;
      double power = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        const double d = static_cast<double>(got[i]) - static_cast<double>(wanted[i]);
        error += d * d;
        power += static_cast<double>(wanted[i]) * wanted[i];
      }
      EXPECT_LT(std::sqrt(error / power), bound) << "profile " << static_cast<int>(profile);
      EXPECT_GT(error, 0);
    }
  }

  Context context_{2};
  golden::TemporaryFolder folder_;
};

TEST_F(SpikingQuantization, AHybridRunsInEveryProfile) {
  const model::ModelConfig config = model::preset("tiny-hybrid");
  const std::vector<std::vector<int32_t>> texts = {text(config.vocab_size, 40, 1),
                                                   text(config.vocab_size, 9, 2)};
  expect_near_dense(config, {3.0, texts}, 0.5);
  EXPECT_EQ(model::open_model(folder_.file("spiking.gguf")).config.gate_low_rank, 0);
}

// With thresholds far below the activations only the rounding of weights remains; keys and values
// of softmax mixers are 8-bit numbers whatever k.
TEST_F(SpikingQuantization, FinerThresholdsComeNearerToTheDenseModel) {
  expect_near_dense(model::preset("tiny-hybrid"), {1000.0, {}}, 0.05);
}

// 576 channels are 4.5 groups.
TEST_F(SpikingQuantization, ALastGroupMayBeShort) {
  model::ModelConfig config = model::preset("smollm2-135m");
  config.layers.resize(2);
  config.vocab_size = 256;
  expect_near_dense(config, {3.0, {text(256, 20, 3)}}, 0.5);
}

TEST_F(SpikingQuantization, RefusesThresholdsThatMakeNoSense) {
  const std::string dense = folder_.file("dense.gguf");
  convert::synthesize(context_, model::preset("tiny-hybrid"), {.format = DType::kF32}, dense);
  const std::string output = folder_.file("spiking.gguf");
  for (const double k : {0.0, -3.0, 1e300, std::nan(""), HUGE_VAL}) {
    const convert::ConvertSettings settings{.spikes = convert::SpikeSettings{k, {}}};
    expect_parts(message_of([&] { convert::convert_model(context_, dense, output, settings); }),
                 {"k: expected", fmt::format("{}", k)});
    EXPECT_FALSE(std::filesystem::exists(output));
  }
  const auto run = [&](const std::string& words) {
    const std::string command =
        fmt::format("{} quantize {} -o {} {}", SPB_BINARY, dense, output, words);
    return golden::run_command(folder_, command).status;
  };
  for (const char* words : {"--spike --k 0", "--spike --k nan", "--k 3"}) EXPECT_EQ(run(words), 2);
  EXPECT_FALSE(std::filesystem::exists(output));
  EXPECT_EQ(run("--spike --report"), 0);
  EXPECT_NO_THROW(model::Model::load(context_, output));
}

// Folders and files that lie.
class HostileSpikes : public testing::Test {
 protected:
  void SetUp() override {
    for (const golden::TensorRecipe& recipe : golden_.tensors) {
      tensors_[recipe.name] = golden::make_tensor(recipe, DType::kF32);
    }
  }

  static constexpr const char* kMatrix = "model.layers.1.attn.v_proj.weight";
  static std::string scales() { return std::string(kMatrix) + "_quantizer.scales"; }
  static std::string residual() { return std::string(kMatrix) + "_quantizer.residual"; }

  // Of one number everywhere.
  template <typename T>
  static Tensor filled(DType dtype, const Shape& shape, T value) {
    Tensor tensor(dtype, shape);
    std::fill_n(tensor.as<T>(), shape.elements(), value);
    return tensor;
  }

  void set_residual(const std::vector<std::array<int32_t, 3>>& entries) {
    Tensor list(DType::kI32, Shape{static_cast<int64_t>(entries.size()), 3});
    std::memcpy(list.as<int32_t>(), entries.data(), static_cast<size_t>(list.bytes()));
    tensors_[residual()] = std::move(list);
  }

  std::string write_folder() {
    folder_ = std::make_unique<golden::TemporaryFolder>();
    golden::write_config(golden_, DType::kF32, io::Json::object(), folder_->path());
    std::vector<io::TensorEntry> entries;
    for (const auto& [name, tensor] : tensors_) {
      entries.push_back({name, std::as_const(tensor).view(), {}});
    }
    io::write_safetensors(folder_->file("model.safetensors"), entries);
    return folder_->path();
  }

  void expect_runs() {
    const std::string folder = write_folder();
    for (const SpikeProfile profile : kProfiles) {
      for (const float logit : logits_of(context_, folder, golden_.tokens, profile)) {
        ASSERT_TRUE(std::isfinite(logit));
      }
    }
  }

  // Neither loaded, in any profile, nor converted.
  void expect_refused(const std::vector<std::string>& parts) {
    const std::string folder = write_folder();
    const std::string output = folder_->file("out.gguf");
    for (const SpikeProfile profile : kProfiles) {
      expect_parts(message_of([&] { model::Model::load(context_, folder, {.profile = profile}); }),
                   parts);
    }
    const std::string message =
        message_of([&] { convert::convert_model(context_, folder, output, {}); });
    EXPECT_NE(message, "nothing was thrown");
    EXPECT_TRUE(message.find("layers.1") != std::string::npos ||
                message.find("blk.1.") != std::string::npos)
        << message;
    EXPECT_FALSE(std::filesystem::exists(output));
  }

  // The error of a forward pass, which is the same in every profile.
  void expect_forward_fails(const std::vector<std::string>& parts) {
    const std::string folder = write_folder();
    for (const SpikeProfile profile : kProfiles) {
      expect_parts(message_of([&] { logits_of(context_, folder, golden_.tokens, profile); }),
                   parts);
    }
  }

  golden::Case golden_ = golden::read_case("hybrid_g2_d64", "spiking");
  std::map<std::string, Tensor> tensors_;
  std::unique_ptr<golden::TemporaryFolder> folder_;
  Context context_{1};
};

TEST_F(HostileSpikes, MissingScalesNameTheTensor) {
  tensors_.erase(scales());
  expect_refused({scales(), "layers.1"});
}

TEST_F(HostileSpikes, ScalesOfAnotherShapeAreRefused) {
  const Shape shape = tensors_[scales()].shape();
  const std::vector<Shape> wrong = {{shape[0], shape[1] + 1, 1}, {shape[0], shape[1] - 1, 1},
                                    {shape[0] + 1, shape[1], 1}, {shape[0], shape[1], 2},
                                    {shape[0] * shape[1]},       {shape[0], 1, shape[1]}};
  for (const Shape& other : wrong) {
    tensors_[scales()] = filled(DType::kF32, other, 0.01f);
    expect_refused({scales(), "expected shape"});
  }
  tensors_[scales()] = filled(DType::kF32, Shape{shape[0], shape[1]}, 0.01f);
  expect_runs();
  tensors_[scales()] = filled(DType::kI8, shape, int8_t{1});
  expect_refused({scales(), "float"});
}

TEST_F(HostileSpikes, ScalesThatAreNoScalesAreRefused) {
  const Tensor weights = std::move(tensors_[kMatrix]);
  for (const bool stored_codes : {false, true}) {
    tensors_[kMatrix] = stored_codes ? filled(DType::kI8, weights.shape(), int8_t{3})
                                     : filled(DType::kF32, weights.shape(), 0.5f);
    for (const float bad : {0.0f, -0.01f, NAN, HUGE_VALF}) {
      float& scale = tensors_[scales()].as<float>()[7];
      const float good = std::exchange(scale, bad);
      expect_refused({kMatrix, "scales: row 3, group 1", "above 0"});
      scale = good;
    }
    expect_runs();
  }
}

TEST_F(HostileSpikes, WeightsThatAreNoCodesAreRefused) {
  for (const float bad : {NAN, -HUGE_VALF, 3e38f}) {
    float& weight = tensors_[kMatrix].as<float>()[256 * 5 + 9];
    const float good = std::exchange(weight, bad);
    expect_refused({kMatrix, "row 5, column 9"});
    weight = good;
  }
}

TEST_F(HostileSpikes, ResidualsAreCheckedBeforeUse) {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
  tensors_[kMatrix] = filled(DType::kI8, tensors_[kMatrix].shape(), int8_t{127});
  const auto rows = static_cast<int32_t>(tensors_[kMatrix].shape()[0]);
  const auto columns = static_cast<int32_t>(tensors_[kMatrix].shape()[1]);
  using Entries = std::vector<std::array<int32_t, 3>>;
  for (const Entries& outside :
       {Entries{{rows, 0, 1}}, Entries{{-1, 0, 1}}, Entries{{0, columns, 1}}, Entries{{0, -1, 1}},
        Entries{{0, 0, 1}, {kLeast, kMost, 1}}}) {
    set_residual(outside);
    expect_refused({kMatrix, "residual", "inside"});
  }
  for (const Entries& disordered : {Entries{{1, 5, 1}, {0, 9, 1}}, Entries{{1, 5, 1}, {1, 4, 1}},
                                    Entries{{1, 5, 1}, {1, 5, 1}}}) {
    set_residual(disordered);
    expect_refused({kMatrix, "residual", "ascending"});
  }
  for (const int32_t excess : {kMost, kLeast, 1 << 24}) {
    set_residual({{2, 3, excess}});
    expect_refused({kMatrix, "residual: row 2, column 3", "|code|"});
  }
  set_residual({{0, 0, 1}, {0, columns - 1, 300}, {rows - 1, 0, -500}});
  expect_runs();
  tensors_[residual()] = filled(DType::kI32, Shape{4, 2}, 1);
  expect_refused({residual(), "expected shape"});
  tensors_[residual()] = filled(DType::kF32, Shape{4, 3}, 1.0f);
  expect_refused({residual(), "i32"});
}

TEST_F(HostileSpikes, CodesWithoutScalesAreRefused) {
  tensors_[kMatrix] = filled(DType::kI8, tensors_[kMatrix].shape(), int8_t{1});
  tensors_.erase(scales());
  expect_refused({scales()});
  // Without any scales the model is no spiking one; its gate is then in two parts.
  std::erase_if(tensors_, [](const auto& entry) { return entry.first.ends_with(".scales"); });
  for (const char* layer : {"model.layers.0.", "model.layers.2."}) {
    const std::string gate = std::string(layer) + "attn.gk_proj.";
    const int64_t kv = tensors_[gate + "weight"].shape()[0];
    tensors_[gate + "0.weight"] = filled(DType::kF32, Shape{16, 256}, 0.1f);
    tensors_[gate + "1.weight"] = filled(DType::kF32, Shape{kv, 16}, 0.1f);
    tensors_[gate + "1.bias"] = filled(DType::kF32, Shape{kv}, 0.1f);
  }
  expect_refused({kMatrix, "got i8"});
}

// One metadata key of a converted file is changed.
TEST_F(HostileSpikes, MetadataOutOfRangeIsRefused) {
  const std::string good = (write_folder(), folder_->file("good.gguf"));
  convert::convert_model(context_, folder_->path(), good, {});
  const auto file = io::GgufFile::open(good);
  std::vector<io::GgufTensorPlan> plans;
  for (const io::TensorEntry& entry : file->tensors()) {
    plans.push_back({entry.name, entry.view.dtype(), entry.view.shape(),
                     [view = entry.view](std::span<std::byte> out) {
                       std::memcpy(out.data(), view.data(), out.size());
                     }});
  }
  const std::vector<std::pair<std::string, io::GgufValue>> wrong = {
      {"group_size", int64_t{64}},
      {"group_size", int64_t{0}},
      {"group_size", int64_t{-128}},
      {"group_size", std::string("?")},
      {"k", 0.0},
      {"k", -3.0},
      {"k", std::nan("")},
      {"k", HUGE_VAL},
      {"k", std::string("three")},
      {"coding", std::string("w4")},
  };
  const std::string bad = folder_->file("bad.gguf");
  for (const auto& [key, value] : wrong) {
    io::GgufMetadata metadata = file->metadata();
    metadata.set("spikingbrain.spike." + key, value);
    io::write_gguf(bad, metadata, plans);
    expect_parts(message_of([&] { model::Model::load(context_, bad); }), {"bad.gguf", key});
  }
}

TEST_F(HostileSpikes, ActivationsThatAreNoNumbersNameLayerAndSite) {
  const auto poison = [&](const std::string& name, const std::string& site) {
    float& value = tensors_.at(name).as<float>()[1];
    const float good = std::exchange(value, NAN);
    expect_forward_fails({site, "finite"});
    value = good;
  };
  poison("model.layers.0.attn_norm.weight", "layer 0, site mixer_in");
  poison("model.layers.0.attn.v_proj.bias", "layer 0, site mixer_out");
  poison("model.layers.1.attn.q_proj.bias", "layer 1, site query");
  poison("model.layers.1.attn.k_proj.bias", "layer 1, site key");
  poison("model.layers.1.attn.v_proj.bias", "layer 1, site value");
  poison("model.layers.2.mlp_norm.weight", "layer 2, site ffn_in");
}

}  // namespace
}  // namespace spb
