// spike_gated_matmul is two products and their swiglu, one after the other.
#include "spike/spike_matmul/spike_gated_matmul.h"

#include "core/test_errors.h"
#include "ops/swiglu/swiglu.h"
#include "spike/spike_matmul/spike_matmul_problem.h"

namespace spb::spike {
namespace {

struct Fired {
  Tensor core;
  Tensor thresholds;
  SpikeCounts counts;
};

Fired fire(Context& context, Rng& rng, const Shape& shape) {
  Tensor x(DType::kF32, shape);
  for (int64_t i = 0; i < shape.elements(); ++i) x.as<float>()[i] = rng.normal();
  Fired fired{Tensor(DType::kI8, shape), Tensor(DType::kF32, Shape{shape[0]}), {}};
  fired.counts.core = fired.core;
  fired.counts.thresholds = fired.thresholds;
  spike_threshold(context, {x, {}, &fired.counts});
  return fired;
}

Tensor poisoned(const Shape& shape) {
  Tensor tensor(DType::kF32, shape);
  std::fill_n(tensor.as<float>(), shape.elements(), spb::test::kPoison);
  return tensor;
}

TEST(SpikeGatedMatmul, HasTheBitsOfItsParts) {
  Rng rng(21);
  Context context(2);
  for (const int64_t rows : {1, 7, 30}) {
    const Fired fired = fire(context, rng, Shape{rows, 256});
    const SpikeWeight gate =
        prepare_spike_weight(context, test::random_codes(rng, 37, 256).source());
    const SpikeWeight up = prepare_spike_weight(context, test::random_codes(rng, 37, 256).source());
    Tensor opened = poisoned(Shape{rows, 37});
    Tensor expected = poisoned(Shape{rows, 37});
    const SpikeMatmulTarget parts[] = {{&gate, {}, expected}, {&up, {}, opened}};
    spike_matmul(context, {&fired.counts, parts});
    ops::swiglu(context, {expected, opened, expected});
    Tensor y = poisoned(Shape{rows, 37});
    spike_gated_matmul(context, {&fired.counts, &gate, &up, y});
    EXPECT_TRUE(spb::test::same_bits(y, expected)) << rows << " rows";
  }
}

TEST(SpikeGatedMatmul, RefusesMatricesThatDiffer) {
  Rng rng(22);
  Context context(1);
  const Fired fired = fire(context, rng, Shape{3, 128});
  const SpikeWeight gate = prepare_spike_weight(context, test::random_codes(rng, 16, 128).source());
  const SpikeWeight less = prepare_spike_weight(context, test::random_codes(rng, 15, 128).source());
  Tensor y(DType::kF32, Shape{3, 16});
  EXPECT_THROW(spike_gated_matmul(context, {&fired.counts, &gate, &less, y}), Error);
  EXPECT_THROW(spike_gated_matmul(context, {&fired.counts, &less, &gate, y}), Error);
  EXPECT_THROW(spike_gated_matmul(context, {&fired.counts, &gate, nullptr, y}), Error);
  EXPECT_THROW(spike_gated_matmul(context, {nullptr, &gate, &gate, y}), Error);
}

}  // namespace
}  // namespace spb::spike
