// Hugging Face folder -> GGUF -> the same model; and what conversion refuses.
#include "convert/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "convert/synthesize.h"
#include "core/error.h"
#include "core/test_errors.h"
#include "golden/byte_tokenizer.h"
#include "golden/golden_recipe.h"
#include "io/checkpoint.h"
#include "model/forward.h"
#include "text/tokenizer.h"

namespace spb {
namespace {

using test::message_of;

std::vector<float> last_logits(Context& context, const std::string& path,
                               std::span<const int32_t> tokens) {
  const auto model = model::Model::load(context, path);
  model::SequenceState state(*model, {256, 256, DType::kF32});
  Tensor logits(DType::kF32, Shape{1, model->config().vocab_size});
  const model::SequenceSlice slice{tokens, &state, model::Logits::kLast};
  model::forward(context, *model, {&slice, 1}, logits);
  return {logits.as<float>(), logits.as<float>() + logits.shape().elements()};
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  double difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(a[i])));
    difference = std::max(difference, std::fabs(static_cast<double>(a[i]) - b[i]));
  }
  return difference / largest;
}

class ConvertTest : public testing::Test {
 protected:
  void write_model(const std::string& name, const io::Json& extra = io::Json::object()) {
    case_ = golden::read_case(name);
    golden::write_config(case_, DType::kF32, extra, folder_.path());
    golden::write_weights(case_, DType::kF32, folder_.path());
  }

  std::string convert(DType format) {
    const std::string output = folder_.file(fmt::format("{}.gguf", name(format)));
    convert::convert_model(context_, folder_.path(), output, {.format = format});
    return output;
  }

  Context context_{2};
  golden::TemporaryFolder folder_;
  golden::Case case_;
};

// f32 keeps every bit, for every model type.
TEST_F(ConvertTest, AnF32FileIsTheSameModel) {
  for (const char* name :
       {"gla_swa_g2_d64_tied", "gla_swa_layers_given", "llama3_scaled_tied", "qwen2"}) {
    write_model(name);
    const auto original = last_logits(context_, folder_.path(), case_.tokens);
    const std::string file = convert(DType::kF32);
    EXPECT_EQ(original, last_logits(context_, file, case_.tokens)) << name;
    std::filesystem::remove(file);
  }
}

TEST_F(ConvertTest, SmallerFormatsStayNear) {
  write_model("gla_swa_g2_d64_tied");
  const auto original = last_logits(context_, folder_.path(), case_.tokens);
  const std::vector<std::pair<DType, double>> bounds = {
      {DType::kBF16, 0.02}, {DType::kF16, 0.02}, {DType::kQ8_0, 0.04}, {DType::kQ5_1, 0.2},
      {DType::kQ5_0, 0.2},  {DType::kQ4_1, 0.4}, {DType::kQ4_0, 0.4}};
  for (const auto& [format, bound] : bounds) {
    const auto converted = last_logits(context_, convert(format), case_.tokens);
    EXPECT_LE(relative_difference(original, converted), bound) << name(format);
  }
}

TEST_F(ConvertTest, TheTokenizerAndTheChatTemplateTravelInTheFile) {
  write_model("gla_swa_g2_d64_tied");
  golden::write_byte_tokenizer(folder_.path());
  const auto file = io::GgufFile::open(convert(DType::kQ8_0));
  const auto tokenizer = text::load_tokenizer_gguf(file->metadata());
  const auto original = text::load_tokenizer_folder(folder_.path());
  const std::string text = "Grüße, <|im_end|> 12 \xff";
  EXPECT_EQ(tokenizer->encode(text), original->encode(text));
  EXPECT_EQ(tokenizer->end_tokens(), original->end_tokens());
  EXPECT_TRUE(file->metadata().get_string("tokenizer.chat_template").has_value());
}

TEST_F(ConvertTest, RefusesWhatTheForwardPassDoesNotDo) {
  const std::vector<std::pair<io::Json, std::string>> cases = {
      {{{"use_short_conv", true}}, "use_short_conv"},
      {{{"hidden_act", "gelu"}}, "hidden_act"},
      {{{"model_type", "mamba"}}, "model_type"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
      {{{"num_attention_heads", 0}}, "num_attention_heads"},
      {{{"num_attention_heads", "four"}}, "num_attention_heads"},
      {{{"num_hidden_layers", -1}}, "num_hidden_layers"},
      {{{"num_hidden_layers", 1e30}}, "num_hidden_layers"},
      {{{"attn_layers", {0, 99}}}, "attn_layers"},
      {{{"norm_eps", 0}}, "epsilon"},
      {{{"sliding_window", 0}}, "sliding window"},
  };
  for (const auto& [extra, key] : cases) {
    write_model("gla_swa_g2_d64_tied", extra);
    const std::string message = message_of([&] { convert(DType::kF32); });
    EXPECT_NE(message.find("config.json"), std::string::npos) << message;
    EXPECT_NE(message.find(key), std::string::npos) << message;
    EXPECT_FALSE(std::filesystem::exists(folder_.file("f32.gguf")));
  }
}

TEST_F(ConvertTest, NamesMissingAndMisshapenTensors) {
  write_model("gla_swa_g2_d64_tied");
  const auto source = io::open_safetensors(folder_.file("model.safetensors"));
  const std::string victim = "model.layers.0.mlp.up_proj.weight";
  std::vector<io::TensorEntry> kept;
  for (const io::TensorEntry& entry : source->tensors()) {
    if (entry.name != victim) kept.push_back(entry);
  }
  golden::TemporaryFolder other;
  std::filesystem::copy(folder_.file("config.json"), other.file("config.json"));
  io::write_safetensors(other.file("model.safetensors"), kept);
  const auto attempt = [&] {
    convert::convert_model(context_, other.path(), other.file("out.gguf"), {});
  };
  EXPECT_NE(message_of(attempt).find(victim), std::string::npos) << message_of(attempt);
  const ConstTensorView whole = source->at(victim).view;
  kept.push_back({victim, whole.rows(0, whole.shape()[0] - 1), ""});
  io::write_safetensors(other.file("model.safetensors"), kept);
  EXPECT_NE(message_of(attempt).find("expected shape"), std::string::npos) << message_of(attempt);
  EXPECT_FALSE(std::filesystem::exists(other.file("out.gguf")));
}

TEST_F(ConvertTest, AnExistingFileIsReplacedOnlyOnRequest) {
  write_model("qwen2");
  const std::string file = convert(DType::kBF16);
  EXPECT_NE(message_of([&] { convert(DType::kBF16); }).find("--force"), std::string::npos);
  EXPECT_NO_THROW(convert::convert_model(context_, folder_.path(), file, {.overwrite = true}));
}

// A row of 96 does not divide into blocks of 256, nor 100 into blocks of 32.
TEST(StorageDtype, KeepsVectorsExactAndFallsBackWhereRowsDoNotDivide) {
  const auto stored = [](model::TensorUse use, int64_t columns, DType format) {
    const model::TensorSlot slot{0, "ffn_up.weight", use, Shape{4, columns}, nullptr};
    return convert::storage_dtype(slot, format, DType::kQ8_0);
  };
  EXPECT_EQ(stored(model::TensorUse::kVector, 64, DType::kQ4_0), DType::kF32);
  EXPECT_EQ(stored(model::TensorUse::kMatrix, 64, DType::kQ4_0), DType::kQ4_0);
  EXPECT_EQ(stored(model::TensorUse::kMatrix, 100, DType::kQ4_0), DType::kF16);
  EXPECT_EQ(stored(model::TensorUse::kSmallMatrix, 64, DType::kQ4_0), DType::kF16);
  EXPECT_EQ(stored(model::TensorUse::kSmallMatrix, 64, DType::kF32), DType::kF32);
  EXPECT_EQ(stored(model::TensorUse::kEmbedding, 64, DType::kQ4_0), DType::kQ8_0);
}

TEST(Synthesize, WritesEveryArchitectureTheSameWayTwice) {
  Context context(2);
  golden::TemporaryFolder folder;
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  model::ModelConfig dense = model::preset("tiny-hybrid");
  dense.layers = model::uniform_layers(2, model::Mixer::kFull);
  for (const char* architecture : {"spikingbrain", "llama", "qwen2"}) {
    const std::string path = folder.file(architecture);
    const model::ModelConfig config =
        std::string(architecture) == "spikingbrain" ? model::preset("tiny-hybrid") : dense;
    convert::synthesize(context, config, {.architecture = architecture}, path);
    const auto first = last_logits(context, path, tokens);
    convert::synthesize(context, config, {.architecture = architecture}, path);
    EXPECT_EQ(first, last_logits(context, path, tokens));
    for (const float logit : first) ASSERT_TRUE(std::isfinite(logit));
  }
  EXPECT_THROW(convert::synthesize(context, model::preset("tiny-hybrid"), {.architecture = "llama"},
                                   folder.file("bad")),
               Error);
  EXPECT_FALSE(std::filesystem::exists(folder.file("bad")));
}

}  // namespace
}  // namespace spb
