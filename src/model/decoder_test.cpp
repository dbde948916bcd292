#include "model/decoder.h"

#include <gtest/gtest.h>

#include <deque>

#include "core/test_cuda.h"
#include "core/test_errors.h"
#include "model/test_model.h"

namespace spb::model {
namespace {

// head_dim and sizes that the kernels of every device take.
ModelConfig decoder_config() {
  ModelConfig config = test_config();
  config.hidden_size = 128;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  config.layers.back().mixers = {Mixer::kFull};
  config.window_size = 8;
  return config;
}

// Sequences that have read prompts of different lengths, and what forward() makes of them.
class Decoding {
 public:
  Decoding(const Device& device, DType dtype, int64_t count) : context_(device, 2), count_(count) {
    if (device.is_cuda()) context_.set_activation_dtype(dtype);
    model_ = test_model(context_, decoder_config());
    for (int64_t i = 0; i < count; ++i) states_.push_back(prompted(i));
  }

  SequenceState prompted(int64_t index) {
    SequenceState state(*model_, {200, 64});
    std::vector<int32_t> prompt;
    for (int64_t i = 0; i < 5 + 7 * index; ++i) {
      prompt.push_back(static_cast<int32_t>((i * 13 + index) % 67));
    }
    const SequenceSlice slice{prompt, &state, Logits::kNone};
    forward(context_, *model_, {&slice, 1}, {});
    return state;
  }

  int32_t id(int64_t step, int64_t sequence) const {
    return static_cast<int32_t>((step * 29 + sequence * 3) % 67);
  }

  // The logits of every sequence after some steps, each sequence alone, by forward().
  Tensor expected(int64_t steps) {
    Tensor all(DType::kF32, Shape{count_, 67});
    for (int64_t i = 0; i < count_; ++i) {
      SequenceState state = prompted(i);
      for (int64_t step = 0; step < steps; ++step) {
        feed(state, id(step, i), all.as<float>() + i * 67);
      }
    }
    return all;
  }

  // One token by forward(); `logits` nullptr: not wanted.
  void feed(SequenceState& state, int32_t token, float* logits) {
    const SequenceSlice slice{{&token, 1}, &state, logits ? Logits::kLast : Logits::kNone};
    const TensorView row(reinterpret_cast<std::byte*>(logits), DType::kF32, Shape{1, 67});
    forward(context_, *model_, {&slice, 1}, logits ? row : TensorView());
  }

  void step(Decoder& decoder, int64_t step) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count_; ++i) ids.push_back(id(step, i));
    logits_ = test::take(context_, decoder.step(ids));
  }

  Decoder decoder() {
    std::vector<SequenceState*> pointers;
    for (SequenceState& state : states_) pointers.push_back(&state);
    return Decoder(context_, *model_, pointers);
  }

  Context& context() { return context_; }
  const Tensor& logits() const { return logits_; }
  std::deque<SequenceState>& states() { return states_; }

 private:
  Context context_;
  int64_t count_;
  std::unique_ptr<Model> model_;
  std::deque<SequenceState> states_;
  Tensor logits_;
};

void expect_same(const Tensor& actual, const Tensor& expected) {
  ASSERT_EQ(actual.shape(), expected.shape());
  for (int64_t i = 0; i < expected.shape().elements(); ++i) {
    ASSERT_EQ(actual.as<float>()[i], expected.as<float>()[i]) << "logit " << i;
  }
}

// Alone = together = recorded, bit for bit, well past the end of the window's ring.
void expect_steps_of_forward(const Device& device, DType dtype, int64_t sequences) {
  Decoding decoding(device, dtype, sequences);
  Decoder decoder = decoding.decoder();
  constexpr int64_t kSteps = 90;
  for (int64_t step = 0; step < kSteps; ++step) {
    decoding.step(decoder, step);
    if (step == 0 || step == 2 || step == 3 || step + 1 == kSteps) {
      expect_same(decoding.logits(), decoding.expected(step + 1));
    }
  }
}

TEST(Decoder, TakesTheStepsOfForward) {
  for (const int64_t sequences : {1, 3}) expect_steps_of_forward({}, DType::kF32, sequences);
}

class DecoderCuda : public test::OnCuda {};
INSTANTIATE_TEST_SUITE_P(Dtypes, DecoderCuda, test::activation_dtypes(), test::dtype_name);

TEST_P(DecoderCuda, TakesTheStepsOfForward) {
  for (const int64_t sequences : {1, 2, 5, 8}) {
    expect_steps_of_forward(context().device(), GetParam(), sequences);
  }
}

// Two sequences after four steps, one token more of the second alone, and `last` for both.
template <typename Last>
void expect_recording_anew(Decoding& decoding, Last last) {
  Decoder decoder = decoding.decoder();
  for (int64_t step = 0; step < 4; ++step) decoding.step(decoder, step);
  decoding.feed(decoding.states()[1], 7, nullptr);
  last(decoder);

  Tensor expected(DType::kF32, decoding.logits().shape());
  for (int64_t i = 0; i < 2; ++i) {
    SequenceState state = decoding.prompted(i);
    for (int64_t step = 0; step < 5; ++step) {
      if (i == 1 && step == 4) decoding.feed(state, 7, nullptr);
      decoding.feed(state, decoding.id(step, i), expected.as<float>() + i * 67);
    }
  }
  expect_same(decoding.logits(), expected);
}

TEST_P(DecoderCuda, RecordsAnewAfterASequenceWentOnItsOwn) {
  Decoding decoding(context().device(), GetParam(), 2);
  expect_recording_anew(decoding, [&](Decoder& decoder) { decoding.step(decoder, 4); });
}

// Scratch memory that must grow cannot be cleared while a step is recorded. What was recorded
// before is of other positions and must not be played instead.
TEST_P(DecoderCuda, ARecordingThatFailedLeavesTheStepToBeTakenAgain) {
  Decoding decoding(context().device(), GetParam(), 2);
  expect_recording_anew(decoding, [&](Decoder& decoder) {
    Arena& arena = decoding.context().arena();
    {
      const Arena::Scope scope(arena);
      const int64_t units = arena.reserved_bytes() / static_cast<int64_t>(Buffer::kAlignment);
      for (int64_t unit = 0; unit < units; ++unit) arena.allocate_bytes(1);  // all of it
      test::expect_error(ErrorKind::kSystem, "(--chunk)", [&] { decoding.step(decoder, 4); });
    }
    decoding.step(decoder, 4);
  });
}

TEST(Decoder, RefusesWhatForwardRefuses) {
  Decoding decoding({}, DType::kF32, 2);
  Decoder decoder = decoding.decoder();
  const int32_t few[] = {1};
  test::expect_error(ErrorKind::kUsage, "decoder: ids: expected 2, got 1",
                     [&] { decoder.step(few); });
  const int32_t beyond[] = {1, 67};
  test::expect_error(ErrorKind::kUsage, "expected an id from 0 to 66, got 67",
                     [&] { decoder.step(beyond); });
}

}  // namespace
}  // namespace spb::model
