// spike_gated_matmul on a CUDA device has the bits of its parts there.
#include "core/test_cuda.h"
#include "ops/swiglu/swiglu.h"
#include "spike/spike_matmul/spike_matmul_cuda.h"
#include "spike/spike_matmul/spike_matmul_problem.h"

namespace spb::spike {
namespace {

using test::Codes;

struct Case {
  int64_t tokens;
  int64_t channels;
  int64_t outputs;
  double outliers = 0;
  double k = 3;
  int32_t largest_code = 127;  // beyond it with residual codes
};

class SpikeGatedMatmulCuda : public spb::test::OnCuda {
 protected:
  void expect_same(Rng& rng, const Case& c) {
    Context& context = this->context();
    const Tensor x = spb::test::put(
        context, test::random_drives(rng, Shape{c.tokens, c.channels}, c.outliers), GetParam());
    Tensor core(DType::kI8, x.shape(), context.device());
    Tensor thresholds(DType::kF32, Shape{c.tokens}, context.device());
    SpikeCounts counts{core, thresholds, {}, {}, {}, {}, {}, {}};
    spike_threshold(context, {x, {.k = c.k}, &counts});
    const SpikeWeight gate = weight(rng, c);
    const SpikeWeight up = weight(rng, c);
    const Shape shape{c.tokens, c.outputs};
    Tensor expected = spb::test::poisoned(context, shape, GetParam());
    Tensor opened = spb::test::poisoned(context, shape, GetParam());
    const SpikeMatmulTarget parts[] = {{&gate, {}, expected}, {&up, {}, opened}};
    spike_matmul(context, {&counts, parts});
    ops::swiglu(context, {expected, opened, expected});
    Tensor y = spb::test::poisoned(context, shape, GetParam());
    const SpikeGatedMatmulArgs args{&counts, &gate, &up, y};
    if (fuses(c)) {
      EXPECT_TRUE(spike_gated_matmul_fused(context, args));
    } else {
      spike_gated_matmul(context, args);
    }
    EXPECT_TRUE(spb::test::same_bits(spb::test::take(context, y).view(),
                                     spb::test::take(context, expected).view()))
        << c.tokens << " tokens, " << c.outputs << " from " << c.channels << ", outliers "
        << c.outliers << ", k " << c.k << ", codes to " << c.largest_code;
  }

 private:
  // What must take the kernel that has both matrices.
  bool fuses(const Case& c) {
    return context().stream().is_hopper() && GetParam() == DType::kBF16 && c.tokens > 32 &&
           c.outputs % 8 == 0;
  }

  SpikeWeight weight(Rng& rng, const Case& c) {
    Codes codes = test::random_codes(rng, c.outputs, c.channels);
    if (c.largest_code > 127) test::add_residual(rng, codes, 40, c.largest_code);
    return prepare_spike_weight(context(), codes.source(), {.short_last_group = true});
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, SpikeGatedMatmulCuda, spb::test::activation_dtypes(),
                         spb::test::dtype_name);

TEST_P(SpikeGatedMatmulCuda, OfCores) {
  Rng rng(31);
  for (const int64_t tokens : {1, 32, 33, 128, 129, 300, 700}) {
    for (const int64_t outputs : {8, 200, 203, 392}) expect_same(rng, {tokens, 320, outputs});
  }
}

TEST_P(SpikeGatedMatmulCuda, OfBurstsAndResidualCodes) {
  Rng rng(32);
  for (const double k : {3.0, 300.0, 6000.0}) {
    for (const int32_t largest : {127, 300, 5000, kMaxCode}) {
      expect_same(rng, {150, 384, 208, 0.01, k, largest});
    }
  }
}

// More pieces of work than the device has multiprocessors.
TEST_P(SpikeGatedMatmulCuda, ManyPieces) {
  Rng rng(33);
  expect_same(rng, {3000, 256, 2568, 0.0001});
}

}  // namespace
}  // namespace spb::spike
