// Products on a CUDA device have the bits of the reference in every path, stored or added, so a row
// has the same result alone and among others.
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
  float before = 20;  // size of what results are added to
};

Tensor drives(Rng& rng, const Input& input) {
  return test::random_drives(rng, Shape{input.rows, input.channels}, input.outliers);
}

// Every 37th row has a count that no digits hold: about 22000 for 272 channels and k = 100.
Tensor far_drives(Rng& rng, const Input& input) {
  Tensor x = drives(rng, input);
  for (int64_t i = 1; i < input.rows; i += 37) {
    x.as<float>()[i * input.channels + rng.below(input.channels)] = 1000;
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
    expect_same(rng, input, drives(rng, input), matrices, ways);
  }

  // The same of these drives.
  void expect_same(Rng& rng, const Input& input, const Tensor& x,
                   const std::vector<Codes>& matrices,
                   const std::vector<How>& ways = {How::kChosen, How::kWarpTiles, How::kEvents}) {
    const std::vector<Tensor> biases = random_biases(rng, matrices);
    std::vector<Tensor> stored = reference(x, input.k, matrices, biases);
    std::vector<Tensor> before;
    std::vector<Tensor> added;
    for (size_t t = 0; t < matrices.size(); ++t) {
      const DType dtype = y_dtype(t, matrices.size());
      stored[t] = rounded(stored[t], dtype);
      before.push_back(spb::test::random_tensor(rng, stored[t].shape(), input.before));
      added.push_back(rounded(sum(before[t], stored[t]), dtype));
    }
    std::vector<SpikeWeight> weights;
    for (const Codes& codes : matrices) {
      weights.push_back(prepare_spike_weight(context(), codes.source(),
                                             {.channel_major = true, .short_last_group = true}));
    }
    for (const How how : ways) {
      expect_results(stored, run(x, input.k, weights, biases, {}, how), how, "stored");
      expect_results(added, run(x, input.k, weights, biases, before, how), how, "added");
    }
  }

 private:
  DType y_dtype(size_t target, size_t targets) const {
    return target + 1 == targets ? DType::kF32 : GetParam();
  }

  Tensor rounded(const Tensor& exact, DType dtype) {
    return widened(to_host(spb::test::put(context(), exact, dtype)));
  }

  static Tensor sum(const Tensor& a, const Tensor& b) {
    Tensor sum(DType::kF32, a.shape());
    for (int64_t i = 0; i < a.shape().elements(); ++i) {
      sum.as<float>()[i] = a.as<float>()[i] + b.as<float>()[i];
    }
    return sum;
  }

  static void expect_results(const std::vector<Tensor>& expected, const std::vector<Tensor>& got,
                             How how, const char* kind) {
    for (size_t t = 0; t < expected.size(); ++t) {
      EXPECT_EQ(first_difference(expected[t], got[t]), "")
          << kind << ", way " << static_cast<int>(how) << ", target " << t << ", "
          << expected[t].shape().to_string();
    }
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

  // Onto `before`, where there is something.
  std::vector<Tensor> run(const Tensor& x, double k, const std::vector<SpikeWeight>& weights,
                          const std::vector<Tensor>& biases, const std::vector<Tensor>& before,
                          How how) {
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
      const DType dtype = y_dtype(t, weights.size());
      y.push_back(before.empty() ? spb::test::poisoned(
                                       context(), Shape{x.shape()[0], weights[t].rows()}, dtype)
                                 : spb::test::put(context(), before[t], dtype));
      targets.push_back({&weights[t],
                         biases_device[t].defined() ? biases_device[t].view() : TensorView(),
                         y.back(), !before.empty()});
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

// Numbers that no digits hold: in tokens, in rows of weights, and where the two meet.
TEST_P(SpikeMatmulCuda, FarTokensAndRows) {
  Rng rng(8);
  for (const int64_t rows : {2, 40, 300}) {
    const Input input{rows, 272, 0, 100};
    const Tensor far = far_drives(rng, input);
    std::vector<Codes> matrices = random_matrices(rng, {200, 77, 24}, input.channels);
    expect_same(rng, input, far, matrices);
    for (Codes& codes : matrices) test::add_residual(rng, codes, 3, kMaxCode);
    expect_same(rng, input, matrices);
    expect_same(rng, input, far, matrices);
  }
}

// Results and sums about the smallest normal number are rounded like others.
TEST_P(SpikeMatmulCuda, TinyNumbers) {
  Rng rng(9);
  for (const int64_t rows : {1, 40, 200}) {
    std::vector<Codes> matrices = random_matrices(rng, {136, 24}, 256);
    for (Codes& codes : matrices) {
      for (int64_t i = 0; i < codes.scales.shape().elements(); ++i) {
        codes.scales.as<float>()[i] *= 1e-38f;
      }
    }
    expect_same(rng, {.rows = rows, .channels = 256, .before = 2e-38f}, matrices);
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

// By so many rows of weights a row of counts goes one of two ways, and its results are added once.
TEST_P(SpikeMatmulCuda, SilenceChoosesTheWay) {
  Rng rng(10);
  const std::vector<Codes> matrices = random_matrices(rng, {4104, 4200}, 400);
  for (const double silence : {0.0, 0.3, 0.5, 0.95, 1.0}) {
    Tensor x = drives(rng, {1, 400, 0.01});
    for (int64_t i = 0; i < 400; ++i) {
      if (rng.uniform() < silence) x.as<float>()[i] = 0;
    }
    expect_same(rng, {1, 400}, x, matrices, {How::kChosen});
  }
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
  const TensorView on_drives{x.view().data(), x.dtype(), y.shape()};
  const SpikeMatmulTarget overwriting{&weight, {}, on_drives};
  EXPECT_THROW(spike_matmul(context(), {&counts, {&overwriting, 1}}), Error);
}

}  // namespace
}  // namespace spb::spike
