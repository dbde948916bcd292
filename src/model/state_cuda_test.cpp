// States on a CUDA device.
#include "model/state.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/test_cuda.h"
#include "model/forward.h"
#include "model/test_model.h"

namespace spb::model {
namespace {

class SequenceStateCuda : public test::OnCuda {
 protected:
  Tensor logits_of(const Model& model, SequenceState& state) {
    const std::vector<int32_t> tokens(40, 7);
    const SequenceSlice slice{tokens, &state, Logits::kLast};
    Tensor logits(DType::kF32, Shape{1, model.config().vocab_size}, context().device());
    forward(context(), model, {&slice, 1}, logits);
    return to_host(logits);
  }

  // Numbers that are none, wherever positions have not been written.
  static void spoil(SequenceState& state, const ModelConfig& config) {
    for (int64_t layer = 0; layer < static_cast<int64_t>(config.layers.size()); ++layer) {
      auto& cache = std::get<KeyValueCache>(state.mixer(layer, 0));
      const std::vector<std::byte> ones(static_cast<size_t>(cache.values.bytes()), std::byte{0xff});
      overwrite(cache.values, ones.data());
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Dtypes, SequenceStateCuda, test::activation_dtypes(), test::dtype_name);

// Tiles of attention multiply values that no query sees by 0, so these must be numbers.
TEST_P(SequenceStateCuda, AClearedOneForgetsWhatWasNoNumber) {
  context().set_activation_dtype(GetParam());
  for (const Mixer mixer : {Mixer::kWindow, Mixer::kFull}) {
    ModelConfig config = test_config(mixer);
    config.hidden_size = 128;
    config.num_heads = 4;
    config.num_kv_heads = 2;
    config.head_dim = 64;
    const auto model = test_model(context(), config);
    SequenceState state(*model, {500, 64});
    const Tensor expected = logits_of(*model, state);
    spoil(state, config);
    state.clear();
    EXPECT_TRUE(test::same_bits(logits_of(*model, state), expected)) << name(mixer);
  }
}

}  // namespace
}  // namespace spb::model
