#include "model/device_room.h"

#include <gtest/gtest.h>

#include <deque>
#include <thread>

#include "core/test_cuda.h"
#include "core/test_errors.h"
#include "model/decoder.h"
#include "model/forward.h"
#include "model/test_model.h"

namespace spb::model {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr Device kCard{Device::Type::kCuda, 0};

// Shapes without memory: views of one address that nobody reads.
ModelWeights shapes_of(const ModelConfig& config, DType matrices) {
  static std::byte somewhere;
  ModelWeights weights;
  for_each_tensor(config, weights, [&](const TensorSlot& slot) {
    const bool vector = slot.use == TensorUse::kVector || slot.use == TensorUse::kSmallMatrix;
    *slot.view = TensorView(&somewhere, vector ? DType::kF32 : matrices, slot.shape);
  });
  return weights;
}

std::string weights_message(DType matrices, int64_t free) {
  const ModelConfig config = preset("qwen2.5-7b");
  return test::message_of([&] {
    check_weights_fit(config, shapes_of(config, matrices), {kCard, free});
  });
}

TEST(DeviceRoom, WeightsSayWhichFormatFits) {
  EXPECT_EQ(weights_message(DType::kBF16, 16 * kGiB), "nothing was thrown");
  EXPECT_EQ(weights_message(DType::kBF16, 10 * kGiB),
            "model: cuda:0: weights of 14527 MiB do not fit into 10240 MiB that are free; as q8_0 "
            "they would take 7718 MiB (spb quantize), or as q4_0 they would take 4087 MiB "
            "(spb quantize)");
  EXPECT_EQ(weights_message(DType::kBF16, 5 * kGiB),
            "model: cuda:0: weights of 14527 MiB do not fit into 5120 MiB that are free; as q4_0 "
            "they would take 4087 MiB (spb quantize)");
  EXPECT_EQ(weights_message(DType::kQ4_0, kGiB),
            "model: cuda:0: weights of 4087 MiB do not fit into 1024 MiB that are free; the "
            "smallest format would take 4087 MiB");
}

TEST(DeviceRoom, WeightsOfUnreadableFormatsAndTiedTablesCountAsTheyWillBe) {
  const ModelConfig config = preset("smollm2-135m");
  ASSERT_TRUE(config.tied_embeddings);
  const int64_t table = config.vocab_size * config.hidden_size;
  const int64_t floats = device_weight_bytes(config, shapes_of(config, DType::kF32));
  EXPECT_EQ(device_weight_bytes(config, shapes_of(config, DType::kQ5_0)), floats);
  EXPECT_GT(floats, 4 * 2 * table);
  const int64_t halves = device_weight_bytes(config, shapes_of(config, DType::kBF16));
  EXPECT_EQ(device_weight_bytes(config, shapes_of(config, DType::kF32), DType::kBF16), halves);
}

TEST(DeviceRoom, StatesSayWhichContextFits) {
  const ModelConfig config = preset("qwen2.5-7b");
  const StateOptions options{0, 1024};
  const int64_t position = state_bytes(config, options, 1).full;
  const auto message = [&](int64_t context, int64_t free, DType matrices = DType::kBF16) {
    const ModelWeights weights = shapes_of(config, matrices);
    return test::message_of([&] {
      check_state_fits(config, weights, options, context, {kCard, free});
    });
  };
  EXPECT_EQ(message(131072, 131072 * position), "nothing was thrown");
  const int64_t longest = (4 * kGiB - 2 * step_bytes(config, 1024)) / position;
  EXPECT_EQ(
      message(131072, 4 * kGiB),
      fmt::format("state: cuda:0: a context of 131072 tokens and steps of 1024 need 7168 MiB, "
                  "but 4096 MiB are free; a context of at most {} tokens fits (--context), or "
                  "a cache of 8-bit codes fits (--cache-type i8), or weights as q8_0 or q4_0 "
                  "leave more room (spb quantize)",
                  longest));
  // The advice is good: what it names passes.
  EXPECT_EQ(message(longest, 4 * kGiB), "nothing was thrown");
  EXPECT_EQ(message(131072, 1 << 20),
            "state: cuda:0: a context of 131072 tokens and steps of 1024 need 7168 MiB, but 1 MiB "
            "are free; weights as q8_0 or q4_0 leave more room (spb quantize)");
  // No format is recommended that the weights have already.
  const std::string little =
      "state: cuda:0: a context of 131072 tokens and steps of 1024 need 7168 MiB, but 1 MiB are "
      "free; ";
  EXPECT_EQ(message(131072, 1 << 20, DType::kQ8_0),
            little + "weights as q4_0 leave more room (spb quantize)");
  EXPECT_EQ(message(131072, 1 << 20, DType::kQ4_0), little + "a smaller model is needed");
}

TEST(DeviceRoom, StatesOfConstantSizeSayWhichStepFits) {
  const ModelConfig config = preset("spikingbrain-7b");
  ASSERT_EQ(config.layers_with(Mixer::kFull), 0);
  const StateOptions options{0, 65536, DType::kBF16};
  const std::string message = test::message_of([&] {
    check_state_fits(config, shapes_of(config, DType::kBF16), options, 0, {kCard, kGiB});
  });
  EXPECT_NE(message.find("steps of 65536 need "), std::string::npos) << message;
  EXPECT_NE(message.find("tokens fit (--chunk)"), std::string::npos) << message;
  EXPECT_EQ(message.find("--context"), std::string::npos) << message;
}

class DeviceRoomCuda : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = cuda::unusable_reason(0);
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

ModelConfig attention_config() {
  ModelConfig config = test_config(Mixer::kFull);
  config.hidden_size = 128;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  return config;
}

TEST_F(DeviceRoomCuda, AStateThatDoesNotFitIsRefusedAndLeavesNothingBehind) {
  Context context(kCard, 1);
  const auto model = test_model(context, attention_config());
  const int64_t before = room_on(kCard).free_bytes;
  test::expect_error(ErrorKind::kSystem, "tokens fits (--context)", [&] {
    SequenceState(*model, {int64_t{1} << 32, 64});
  });
  EXPECT_EQ(room_on(kCard).free_bytes, before);
  const SequenceState state(*model, {100, 64});
  EXPECT_EQ(state.max_context(), 100);
}

TEST_F(DeviceRoomCuda, MemoryThatRanOutIsThereAgain) {
  const int64_t before = room_on(kCard).free_bytes;
  {
    std::deque<Buffer> buffers;
    test::expect_error(ErrorKind::kSystem, "cuda:0: out of memory: asked for ", [&] {
      for (;;) buffers.emplace_back(before / 5, kCard);
    });
    EXPECT_GE(buffers.size(), 4u);
    Arena arena(kCard);
    test::expect_error(ErrorKind::kSystem, "(--chunk)", [&] { arena.allocate_bytes(before / 5); });
    EXPECT_EQ(arena.reserved_bytes(), 0);
    buffers.clear();
    EXPECT_NE(arena.allocate_bytes(before / 5), nullptr);
  }
  EXPECT_GE(room_on(kCard).free_bytes, before - (int64_t{64} << 20));
}

// Weights that become f32 as they are loaded take more than their file says: memory runs out in the
// middle of the layers.
TEST_F(DeviceRoomCuda, AModelThatFailsBetweenLayersLeavesNothingBehind) {
  ModelConfig config = attention_config();
  config.hidden_size = 1024;
  config.intermediate_size = 4096;
  config.layers = uniform_layers(2, Mixer::kFull);
  constexpr int64_t kLeft = 80 << 20;  // between 30 MiB as q8_0 and 110 MiB as f32
  const auto source = std::make_shared<TestWeights>(config, DType::kQ8_0, 5);
  Context context(kCard, 1);
  const Buffer others(room_on(kCard).free_bytes - kLeft, kCard);
  const auto load = [&] {
    test::expect_error(ErrorKind::kSystem, "cuda:0: out of memory: asked for ", [&] {
      Model(context, config, source->weights, source, {.float_weights = true});
    });
  };
  load();  // may leave the runtime with code that it loaded
  const int64_t before = room_on(kCard).free_bytes;
  load();
  EXPECT_EQ(room_on(kCard).free_bytes, before);
}

// Models, contexts and states of different devices: refused before anything is queued.
TEST_F(DeviceRoomCuda, MixedDevicesAreUsageErrors) {
  Context card(kCard, 1);
  Context host(1);
  const auto there = test_model(card, attention_config());
  const auto here = test_model(host, attention_config());
  SequenceState state_there(*there, {100, 64});
  SequenceState state_here(*here, {100, 64});
  const std::vector<int32_t> tokens{1, 2, 3};
  Tensor logits(DType::kF32, Shape{1, here->config().vocab_size});
  const auto run = [&](Context& context, const Model& model, SequenceState& state) {
    const SequenceSlice slice{tokens, &state, Logits::kLast};
    forward(context, model, {&slice, 1}, logits);
  };
  test::expect_error(ErrorKind::kUsage, "expected device cuda:0, got cpu",
                     [&] { run(host, *there, state_there); });
  test::expect_error(ErrorKind::kUsage, "expected device cpu, got cuda:0",
                     [&] { run(card, *here, state_here); });
  test::expect_error(ErrorKind::kUsage, "expected device cuda:0, got cpu",
                     [&] { run(card, *there, state_here); });
  test::expect_error(ErrorKind::kUsage, "expected device cpu, got cuda:0",
                     [&] { run(host, *here, state_there); });
  run(card, *there, state_there);
  run(host, *here, state_here);
}

// A small model on a card, and a sequence that it goes on with.
class OnCard {
 public:
  explicit OnCard(int index)
      : context_({Device::Type::kCuda, index}, 1),
        model_(test_model(context_, attention_config())),
        state_(*model_, {100, 64}),
        decoder_(context_, *model_, {&state_}) {}

  Tensor prefill() { return prefill(state_); }
  Tensor prefill(SequenceState& state) {
    const std::vector<int32_t> tokens{1, 2, 3};
    Tensor logits(DType::kF32, Shape{1, model_->config().vocab_size});
    const SequenceSlice slice{tokens, &state, Logits::kLast};
    forward(context_, *model_, {&slice, 1}, logits);
    return logits;
  }
  Tensor step(int32_t id) { return test::take(context_, decoder_.step({&id, 1})); }

  SequenceState& state() { return state_; }

 private:
  Context context_;
  std::unique_ptr<Model> model_;
  SequenceState state_;
  Decoder decoder_;
};

void take_turns(OnCard& first, OnCard& second) {
  EXPECT_TRUE(test::same_bits(first.prefill(), second.prefill()));
  for (int32_t id = 0; id < 6; ++id) {  // the later ones are recorded
    EXPECT_TRUE(test::same_bits(first.step(id), second.step(id))) << "step " << id;
  }
}

TEST_F(DeviceRoomCuda, CardsTakeTurnsInOneThreadAndInAnother) {
  if (!cuda::unusable_reason(1).empty()) return;  // no second card
  OnCard first(0);
  OnCard second(1);
  take_turns(first, second);
  std::thread([&] { take_turns(second, first); }).join();
  take_turns(first, second);
  test::expect_error(ErrorKind::kUsage, "state: expected device cuda:0, got cuda:1",
                     [&] { first.prefill(second.state()); });
  test::expect_error(ErrorKind::kUsage, "state: expected device cuda:1, got cuda:0",
                     [&] { second.prefill(first.state()); });
}

}  // namespace
}  // namespace spb::model
