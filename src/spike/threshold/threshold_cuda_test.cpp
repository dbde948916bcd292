// Counts and thresholds from a CUDA device have the bits of the CPU's.
#include <bit>
#include <cmath>
#include <cstring>

#include "core/test_cuda.h"
#include "ops/swiglu/swiglu.h"
#include "spike/threshold/spike_values.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {
namespace {

class ThresholdCuda : public test::OnCuda {
 protected:
  // Fires x on both sides and compares cores, thresholds, flags of bursts, and values.
  void expect_same(const Tensor& x, const ThresholdSettings& settings) {
    const Shape& shape = x.shape();
    Tensor core(DType::kI8, shape);
    Tensor thresholds(DType::kF32, Shape{shape[0]});
    SpikeCounts expected{core, thresholds, {}, {}, {}, {}, {}, {}};
    Context cpu(1);
    spike_threshold(cpu, {x, settings, &expected});

    const Arena::Scope scope(context().arena());
    Tensor x_device = test::put(context(), x, GetParam());
    Tensor core_device(DType::kI8, shape, context().device());
    Tensor thresholds_device = test::poisoned(context(), Shape{shape[0]});
    SpikeCounts counts{core_device, thresholds_device, {}, {}, {}, {}, {}, {}};
    spike_threshold(context(), {x_device, settings, &counts});
    expect_same_bytes(core, core_device);
    expect_same_bytes(thresholds, thresholds_device);
    expect_flags(expected, counts);

    Tensor values(DType::kF32, shape);
    spike_values(cpu, expected, values);
    Tensor apart = test::poisoned(context(), shape, GetParam());
    spike_values(context(), counts, apart);
    spike_values(context(), counts, x_device);  // in place
    const Tensor rounded = widened(to_host(test::put(context(), values, GetParam())));
    expect_same_bytes(rounded, test::take(context(), apart));
    expect_same_bytes(rounded, test::take(context(), x_device));
  }

  void expect_same_bytes(const Tensor& expected, const Tensor& got) {
    Tensor host(got.dtype(), got.shape());
    if (got.device().is_cuda()) {
      to_host(context(), got, host);
    } else {
      std::memcpy(host.view().data(), got.view().data(), static_cast<size_t>(got.bytes()));
    }
    EXPECT_EQ(std::memcmp(expected.view().data(), host.view().data(),
                          static_cast<size_t>(expected.view().bytes())),
              0)
        << expected.shape().to_string();
  }

 private:
  void expect_flags(const SpikeCounts& expected, const SpikeCounts& counts) {
    const Shape& shape = counts.burst_groups.shape();
    Tensor wanted(DType::kI8, shape);
    for (const Burst& burst : expected.bursts) {
      wanted.view().row_as<int8_t>(burst.row)[burst.channel / 128] = 1;
    }
    Tensor got(DType::kI8, shape);
    to_host(context(), counts.burst_groups, got);
    EXPECT_EQ(std::memcmp(wanted.view().data(), got.view().data(),
                          static_cast<size_t>(wanted.view().bytes())),
              0);
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, ThresholdCuda, test::activation_dtypes(), test::dtype_name);

Tensor drives(Rng& rng, const Shape& shape, double outliers) {
  Tensor x = test::random_tensor(rng, shape);
  for (int64_t i = 0; i < shape.elements(); ++i) {
    if (rng.uniform() < outliers) x.as<float>()[i] *= 256.0f;
  }
  return x;
}

TEST_P(ThresholdCuda, HasTheBitsOfTheCpu) {
  Rng rng(3);
  for (const int64_t channels : {1, 5, 63, 64, 65, 128, 500, 512, 516, 1000, 3584, 18944, 60004}) {
    for (const double outliers : {0.0, 0.01}) {
      const Shape shape{1 + rng.below(channels > 4000 ? 3 : 40), channels};
      ThresholdSettings settings;
      settings.k = 1.0 + 4.0 * rng.uniform();
      settings.bf16_mean = rng.below(2) == 1;
      settings.dead_zone = static_cast<int32_t>(rng.below(3));
      expect_same(drives(rng, shape, outliers), settings);
    }
  }
}

// So many that each warp fires rows of its own, as far as they fit.
TEST_P(ThresholdCuda, ManyRowsHaveTheBitsOfTheCpu) {
  Rng rng(13);
  for (const int64_t channels : {513, 576, 2048, 3584, 4104}) {
    expect_same(drives(rng, Shape{1025, channels}, 0.001), {});
  }
}

TEST_P(ThresholdCuda, KeepsCountsFarBeyondTheCore) {
  Rng rng(4);
  ThresholdSettings settings;
  settings.k = 4000;
  expect_same(drives(rng, Shape{9, 300}, 0.02), settings);
  settings.dead_zone = 5000;
  expect_same(drives(rng, Shape{9, 300}, 0.02), settings);
}

TEST_P(ThresholdCuda, RowsOfZerosAreSilentAndLimitsHold) {
  Tensor zeros(DType::kF32, Shape{3, 200});
  expect_same(zeros, {});
  Rng rng(5);
  expect_same(drives(rng, Shape{4, 200}, 0.1), {.min_threshold = 0.5f, .max_threshold = 0.75f});
}

// swiglu apart, then a threshold; and both at once. Rows of all widths, the last too long to wait
// in shared memory, with bursts, whose counts are computed again.
TEST_P(ThresholdCuda, OfSwigluIsThatOfItsDrives) {
  Rng rng(12);
  for (const int64_t channels : {1, 63, 128, 512, 1000, 18944, 60004}) {
    const Shape shape{1 + rng.below(channels > 4000 ? 3 : 40), channels};
    const Tensor gate = test::put(context(), drives(rng, shape, 0.01), GetParam());
    const Tensor up = test::put(context(), drives(rng, shape, 0.01), GetParam());
    Tensor product = test::poisoned(context(), shape, GetParam());
    ops::swiglu(context(), {gate, up, product});
    const Arena::Scope scope(context().arena());
    Tensor cores[2];
    Tensor thresholds[2];
    Tensor values[2];
    Tensor flags[2];
    for (const int fused : {0, 1}) {
      cores[fused] = Tensor(DType::kI8, shape, context().device());
      thresholds[fused] = test::poisoned(context(), Shape{shape[0]});
      SpikeCounts counts{cores[fused], thresholds[fused], {}, {}, {}, {}, {}, {}};
      ThresholdArgs args{fused == 1 ? gate : product, {.k = 5}, &counts};
      if (fused == 1) args.up = up;
      spike_threshold(context(), args);
      values[fused] = test::poisoned(context(), shape, GetParam());
      spike_values(context(), counts, values[fused]);
      flags[fused] = Tensor(DType::kI8, counts.burst_groups.shape());
      to_host(context(), counts.burst_groups, flags[fused]);
    }
    expect_same_bytes(to_host(cores[0]), cores[1]);
    expect_same_bytes(to_host(thresholds[0]), thresholds[1]);
    expect_same_bytes(to_host(values[0]), values[1]);
    expect_same_bytes(flags[0], flags[1]);
  }
}

// Drives at and beside the middle between two counts, where a product with the inverse of the
// threshold may lie on the other side than the quotient.
TEST_P(ThresholdCuda, HalvesRoundAsTheCpuRoundsThem) {
  Rng rng(11);
  for (int repeat = 0; repeat < 8; ++repeat) {
    const float threshold = rng.uniform(0.01f, 3.0f);
    Tensor x(DType::kF32, Shape{4, 999});
    for (int64_t i = 0; i < x.shape().elements(); ++i) {
      const auto count = static_cast<float>(rng.below(i % 2 == 0 ? 300 : 2000000)) - 150.0f;
      float drive = threshold * (count + 0.5f);
      for (int64_t step = rng.below(4); step > 0; --step) drive = std::nextafter(drive, 0.0f);
      x.as<float>()[i] = GetParam() == DType::kBF16 ? to_float(to_bf16(drive)) : drive;
    }
    expect_same(x, {.min_threshold = threshold, .max_threshold = threshold});
  }
}

std::string fault_of(Context& context, const Tensor& x, double k) {
  const Arena::Scope scope(context.arena());
  Tensor core(DType::kI8, x.shape(), context.device());
  Tensor thresholds(DType::kF32, Shape{x.shape()[0]}, context.device());
  SpikeCounts counts{core, thresholds, {}, {}, {}, {}, {}, {}};
  try {
    context.stream().set_place("layer 3, site ffn_in");
    spike_threshold(context, {x, {.k = k}, &counts});
    context.stream().set_place("");
    context.stream().synchronize();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    return error.what();
  }
  return "none";
}

TEST_P(ThresholdCuda, FaultsNamePlaceRowAndChannel) {
  Rng rng(6);
  Tensor x = test::random_tensor(rng, Shape{5, 300});
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    x.view().row_as<float>(2)[77] = bad;
    EXPECT_NE(fault_of(context(), test::put(context(), x, GetParam()), 3)
                  .find("layer 3, site ffn_in: row 2, channel 77: expected a finite number"),
              std::string::npos);
  }
  x.view().row_as<float>(2)[77] = 1e7f;
  EXPECT_NE(fault_of(context(), test::put(context(), x, GetParam()), 1e6)
                .find("row 2, channel 77: expected a spike count of at most 2^24"),
            std::string::npos);
  x.view().row_as<float>(2)[77] = 1;
  EXPECT_EQ(fault_of(context(), test::put(context(), x, GetParam()), 3), "none");
}

}  // namespace
}  // namespace spb::spike
