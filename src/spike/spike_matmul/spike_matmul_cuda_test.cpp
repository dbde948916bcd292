// Products on a CUDA device have the bits of the reference in every path, so a row has the same
// result alone and among others.
#include <cstring>

#include "core/test_cuda.h"
#include "spike/spike_matmul/spike_matmul_cuda.h"
#include "spike/spike_matmul/spike_matmul_problem.h"

namespace spb::spike {
namespace {

using test::Codes;

// Drives of bf16 numbers, of which a share are far larger than the others.
struct Input {
  int64_t rows;
  int64_t channels;
  double outliers = 0;
  double k = 3;
};

Tensor random_drives(Rng& rng, const Input& input) {
  Tensor x = spb::test::random_tensor(rng, Shape{input.rows, input.channels});
  for (int64_t i = 0; i < x.shape().elements(); ++i) {
    if (rng.uniform() < input.outliers) x.as<float>()[i] *= 512.0f;
  }
  return x;
}

// Random matrices of so many rows each.
std::vector<Codes> random_matrices(Rng& rng, const std::vector<int64_t>& rows, int64_t channels) {
  std::vector<Codes> matrices;
  for (const int64_t n : rows) matrices.push_back(test::random_codes(rng, n, channels));
  return matrices;
}

enum class How { kChosen, kWarpTiles, kEvents };

class SpikeMatmulCuda : public spb::test::OnCuda {
 protected:
  // All matrices by the same counts in one call, every second one with a bias; y of the dtype of
  // the test but for the last, which is f32.
  void expect_same(Rng& rng, const Input& input, const std::vector<Codes>& matrices,
                   const std::vector<How>& ways = {How::kChosen, How::kWarpTiles, How::kEvents}) {
    const Tensor x = random_drives(rng, input);
    const std::vector<Tensor> biases = random_biases(rng, matrices);
    const std::vector<Tensor> expected = reference(x, input.k, matrices, biases);
    std::vector<SpikeWeight> weights;
    for (const Codes& codes : matrices) {
      weights.push_back(prepare_spike_weight(context(), codes.source(),
                                             {.channel_major = true, .short_last_group = true}));
    }
    for (const How how : ways) {
      const std::vector<Tensor> got = run(x, input.k, weights, biases, how);
      for (size_t t = 0; t < matrices.size(); ++t) {
        const Tensor rounded =
            widened(to_host(spb::test::put(context(), expected[t], y_dtype(t, got))));
        EXPECT_EQ(first_difference(rounded, got[t]), "")
            << "way " << static_cast<int>(how) << ", target " << t << ", "
            << rounded.shape().to_string() << " from " << input.channels << " channels";
      }
    }
  }

 private:
  DType y_dtype(size_t target, const std::vector<Tensor>& all) const {
    return target + 1 == all.size() ? DType::kF32 : GetParam();
  }

  static std::vector<Tensor> random_biases(Rng& rng, const std::vector<Codes>& matrices) {
    std::vector<Tensor> biases;
    for (size_t t = 0; t < matrices.size(); ++t) {
      biases.push_back(t % 2 == 0
                           ? Tensor()
                           : spb::test::random_tensor(rng, Shape{matrices[t].codes.shape()[0]}));
    }
    return biases;
  }

  static std::vector<Tensor> reference(const Tensor& x, double k,
                                       const std::vector<Codes>& matrices,
                                       const std::vector<Tensor>& biases) {
    Context cpu(2);
    Tensor core(DType::kI8, x.shape());
    Tensor thresholds(DType::kF32, Shape{x.shape()[0]});
    SpikeCounts counts{core, thresholds, {}, {}, {}, {}, {}, {}};
    spike_threshold(cpu, {x, {.k = k}, &counts});
    std::vector<Tensor> results;
    for (size_t t = 0; t < matrices.size(); ++t) {
      results.emplace_back(DType::kF32, Shape{x.shape()[0], matrices[t].codes.shape()[0]});
      spike_matmul_reference(counts, matrices[t].source(),
                             biases[t].defined() ? biases[t].view() : ConstTensorView(),
                             results.back());
    }
    return results;
  }

  std::vector<Tensor> run(const Tensor& x, double k, const std::vector<SpikeWeight>& weights,
                          const std::vector<Tensor>& biases, How how) {
    const Arena::Scope scope(context().arena());
    const Tensor x_device = spb::test::put(context(), x, GetParam());
    Tensor core(DType::kI8, x.shape(), context().device());
    Tensor thresholds(DType::kF32, Shape{x.shape()[0]}, context().device());
    SpikeCounts counts{core, thresholds, {}, {}, {}, {}, {}, {}};
    spike_threshold(context(), {x_device, {.k = k}, &counts});
    std::vector<Tensor> biases_device(weights.size());
    std::vector<Tensor> y;
    std::vector<SpikeMatmulTarget> targets;
    for (size_t t = 0; t < weights.size(); ++t) {
      if (biases[t].defined()) biases_device[t] = spb::test::put(context(), biases[t]);
      y.push_back(spb::test::poisoned(context(), Shape{x.shape()[0], weights[t].rows()},
                                      t + 1 == weights.size() ? DType::kF32 : GetParam()));
      targets.push_back({&weights[t],
                         biases_device[t].defined() ? biases_device[t].view() : TensorView(),
                         y.back()});
    }
    const SpikeMatmulArgs args{&counts, targets,
                               how == How::kEvents ? SpikePath::kEvents : SpikePath::kAutomatic};
    how == How::kWarpTiles ? spike_matmul_cuda(context(), args, TileUnit::kWarps)
                           : spike_matmul(context(), args);
    std::vector<Tensor> results;
    for (const Tensor& result : y) results.push_back(spb::test::take(context(), result));
    return results;
  }

  static std::string first_difference(const Tensor& expected, const Tensor& got) {
    int64_t different = 0;
    std::string first;
    for (int64_t i = 0; i < expected.shape().elements(); ++i) {
      const float* a = expected.as<float>() + i;
      const float* b = got.as<float>() + i;
      if (std::memcmp(a, b, sizeof(float)) == 0) continue;
      const int64_t columns = expected.shape().last();
      if (different++ == 0) {
        first =
            fmt::format("row {}, column {}: expected {}, got {}", i / columns, i % columns, *a, *b);
      }
    }
    return different == 0 ? "" : fmt::format("{} numbers differ, {}", different, first);
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, SpikeMatmulCuda, spb::test::activation_dtypes(),
                         spb::test::dtype_name);

TEST_P(SpikeMatmulCuda, CoresAlone) {
  Rng rng(1);
  for (const int64_t rows : {1, 2, 7, 8, 9, 31, 33, 64, 191, 192, 193, 300}) {
    const int64_t channels = 16 * (1 + rng.below(30));
    const std::vector<Codes> matrices =
        random_matrices(rng, {8 * (1 + rng.below(40)), 1 + rng.below(300)}, channels);
    expect_same(rng, {rows, channels}, matrices);
  }
}

TEST_P(SpikeMatmulCuda, OddShapes) {
  Rng rng(2);
  for (int round = 0; round < 12; ++round) {
    const int64_t channels = 1 + rng.below(600);
    std::vector<Codes> matrices;
    for (int64_t t = 0; t <= rng.below(6); ++t) {
      matrices.push_back(test::random_codes(rng, 1 + rng.below(150), channels));
    }
    expect_same(rng, {1 + rng.below(round % 2 == 0 ? 40 : 300), channels, 0.002}, matrices);
  }
}

TEST_P(SpikeMatmulCuda, Bursts) {
  Rng rng(3);
  for (const int64_t rows : {1, 5, 40, 250}) {
    for (const double outliers : {0.001, 0.02, 0.3}) {
      for (const double k : {3.0, 300.0, 6000.0}) {
        const std::vector<Codes> matrices = random_matrices(rng, {136, 77}, 400);
        expect_same(rng, {rows, 400, outliers, k}, matrices);
      }
    }
  }
}

TEST_P(SpikeMatmulCuda, ResidualCodes) {
  Rng rng(4);
  for (const int64_t rows : {1, 6, 50, 200}) {
    for (const int32_t largest : {200, 500, 5000, kMaxCode}) {
      for (const double k : {3.0, 3000.0}) {
        std::vector<Codes> matrices = random_matrices(rng, {300, 40, 24}, 384);
        test::add_residual(rng, matrices[0], 300, largest);
        test::add_residual(rng, matrices[1], 5, largest);
        expect_same(rng, {rows, 384, 0.01, k}, matrices);
      }
    }
  }
}

// More tiles with bursts than have room for digits.
TEST_P(SpikeMatmulCuda, BurstsEverywhere) {
  Rng rng(5);
  const std::vector<Codes> matrices = random_matrices(rng, {24}, 1024);
  expect_same(rng, {2000, 1024, 0.01, 6000}, matrices, {How::kChosen, How::kWarpTiles});
}

// More pieces of work than the device has multiprocessors, and a long row.
TEST_P(SpikeMatmulCuda, ManyPieces) {
  Rng rng(6);
  const std::vector<Codes> matrices = random_matrices(rng, {2568, 3000}, 128);
  expect_same(rng, {3000, 128, 0.0001}, matrices, {How::kChosen});
  const std::vector<Codes> longer = random_matrices(rng, {24}, 22000);
  expect_same(rng, {5, 22000, 0.0001}, longer);
}

TEST_P(SpikeMatmulCuda, RefusesWhatItCannotDo) {
  Rng rng(7);
  const Codes codes = test::random_codes(rng, 16, 128);
  const SpikeWeight weight = prepare_spike_weight(context(), codes.source());
  Context cpu(1);
  Tensor x = spb::test::put(context(), spb::test::random_tensor(rng, Shape{2, 128}), GetParam());
  Tensor core(DType::kI8, x.shape(), context().device());
  Tensor thresholds(DType::kF32, Shape{2}, context().device());
  Tensor y = spb::test::poisoned(context(), Shape{2, 16}, GetParam());
  SpikeCounts counts{core, thresholds, {}, {}, {}, {}, {}, {}};
  const SpikeMatmulTarget target{&weight, {}, y};
  const auto multiply = [&](Context& on, SpikePath path) {
    spike_matmul(on, {&counts, {&target, 1}, path});
  };
  EXPECT_THROW(multiply(context(), SpikePath::kAutomatic), Error) << "counts without drives";
  spike_threshold(context(), {x, {}, &counts});
  EXPECT_THROW(multiply(cpu, SpikePath::kAutomatic), Error) << "a weight of the device";
  EXPECT_THROW(multiply(context(), SpikePath::kPlanes), Error);
  EXPECT_THROW(multiply(context(), SpikePath::kEvents), Error) << "no channel-major copy";
  EXPECT_NO_THROW(multiply(context(), SpikePath::kDense));
}

}  // namespace
}  // namespace spb::spike
