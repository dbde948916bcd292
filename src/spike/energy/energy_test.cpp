#include "spike/energy/energy.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/rng.h"
#include "core/test_errors.h"

namespace spb::spike {
namespace {

SpikeStatistics statistics_of(const std::vector<int8_t>& counts, int64_t channels) {
  const auto rows = static_cast<int64_t>(counts.size()) / channels;
  Tensor core(DType::kI8, Shape{rows, channels});
  std::copy(counts.begin(), counts.end(), core.as<int8_t>());
  SpikeCounts spikes;
  spikes.core = core.view();
  Context context(1);
  SpikeStatistics statistics;
  statistics.add(context, spikes);
  return statistics;
}

// Two rows of three channels.
const std::vector<int8_t> kCounts = {0, 1, -3, 4, 0, 7};
constexpr int64_t kSpikes = 1 + 2 + 1 + 3;
constexpr int64_t kFiring = 4;

TEST(SpikingSiteEnergy, ByHand) {
  const EnergyConstants c = {
      .fp16_mac = 7, .int8_mac = 5, .int8_add = 3, .dram_byte = 1000, .sram_byte = 10};
  const SpikeStatistics statistics = statistics_of(kCounts, 3);
  const MatrixShape matrix = {.inputs = 3, .outputs = 5, .reads = 2};
  const SiteEnergy shared = spiking_site_energy(c, statistics, matrix, WeightFetch::kShared);
  EXPECT_EQ(shared.products, 6 * 5);
  EXPECT_EQ(shared.synaptic_operations, kSpikes * 5);
  EXPECT_EQ(shared.executed.compute, kSpikes * 5 * 3);
  EXPECT_EQ(shared.executed.memory, 2 * 15 * 1000 + (kFiring * 5 + 6 + 2 * 5 * 4) * 10);
  EXPECT_EQ(shared.int8_dense.compute, 30 * 5);
  EXPECT_EQ(shared.int8_dense.memory, 2 * 15 * 1000 + (30 + 6 + 2 * 5 * 4) * 10);
  EXPECT_EQ(shared.fp16_dense.compute, 30 * 7);
  EXPECT_EQ(shared.fp16_dense.memory, 2 * 15 * 2 * 1000 + (30 * 2 + 6 * 2 + 2 * 5 * 4) * 10);
  EXPECT_EQ(shared.fp16_dense.total(), shared.fp16_dense.compute + shared.fp16_dense.memory);

  const SiteEnergy events = spiking_site_energy(c, statistics, matrix, WeightFetch::kEventDriven);
  EXPECT_EQ(events.executed.memory, kFiring * 5 * 1000 + (kFiring * 5 + 6 + 2 * 5 * 4) * 10);
  EXPECT_EQ(events.executed.compute, shared.executed.compute);
}

// The report: 1.13 spikes cost 0.034 pJ a product, 97.7 % less than FP16, 85.2 % less than INT8.
TEST(SpikingSiteEnergy, ReproducesTheComputeFigureOfTheReport) {
  std::vector<int8_t> counts(100, 1);
  for (size_t i = 0; i < 13; ++i) counts[i] = -3;  // two one bits
  const SiteEnergy energy =
      spiking_site_energy({}, statistics_of(counts, 100),
                          {.inputs = 100, .outputs = 64, .reads = 1}, WeightFetch::kShared);
  EXPECT_NEAR(energy.executed.compute / energy.products, 0.0339, 1e-9);
  EXPECT_NEAR(1 - energy.executed.compute / energy.fp16_dense.compute, 0.977, 5e-4);
  EXPECT_NEAR(1 - energy.executed.compute / energy.int8_dense.compute, 0.852, 1e-3);
  // With memory counted, most of that is gone.
  EXPECT_GT(energy.executed.total() / energy.int8_dense.total(), 0.9);
}

TEST(DenseSiteEnergy, ExecutesInItsFormat) {
  const MatrixShape matrix = {.inputs = 11, .outputs = 7, .reads = 3};
  const SiteEnergy half = dense_site_energy({}, 5, matrix, DenseFormat::kFp16);
  const SiteEnergy bytes = dense_site_energy({}, 5, matrix, DenseFormat::kInt8);
  EXPECT_EQ(half.executed.total(), half.fp16_dense.total());
  EXPECT_EQ(bytes.executed.total(), bytes.int8_dense.total());
  EXPECT_DOUBLE_EQ(half.executed.compute, 5 * 11 * 7 * 1.5);
  EXPECT_EQ(half.synaptic_operations, 0);
  // The dense columns of a site do not depend on whether it spikes.
  const SiteEnergy spiking = spiking_site_energy({}, statistics_of(std::vector<int8_t>(55, 2), 11),
                                                 matrix, WeightFetch::kShared);
  EXPECT_EQ(spiking.int8_dense.total(), half.int8_dense.total());
  EXPECT_EQ(spiking.fp16_dense.total(), half.fp16_dense.total());
}

TEST(SiteEnergy, AddsUp) {
  const MatrixShape matrix = {.inputs = 3, .outputs = 5, .reads = 2};
  const SiteEnergy a =
      spiking_site_energy({}, statistics_of(kCounts, 3), matrix, WeightFetch::kEventDriven);
  const SiteEnergy b = dense_site_energy({}, 9, matrix, DenseFormat::kFp16);
  SiteEnergy sum = a;
  sum += b;
  EXPECT_DOUBLE_EQ(sum.executed.total(), a.executed.total() + b.executed.total());
  EXPECT_DOUBLE_EQ(sum.int8_dense.total(), a.int8_dense.total() + b.int8_dense.total());
  EXPECT_DOUBLE_EQ(sum.fp16_dense.total(), a.fp16_dense.total() + b.fp16_dense.total());
  EXPECT_EQ(sum.products, a.products + b.products);
  EXPECT_EQ(sum.synaptic_operations, a.synaptic_operations);
}

TEST(SiteEnergy, WrongSizesAreNamed) {
  EXPECT_EQ(test::message_of(ErrorKind::kUsage,
                             [] { dense_site_energy({}, -1, {.inputs = 3}, DenseFormat::kInt8); }),
            "energy: sizes: expected 0 or more, got 3 inputs, 0 outputs, 0 reads, -1 rows");
  EXPECT_EQ(test::message_of(ErrorKind::kUsage,
                             [] {
                               spiking_site_energy({}, statistics_of(kCounts, 3), {.inputs = 4},
                                                   WeightFetch::kShared);
                             }),
            "energy: statistics: expected 4 channels, got 3");
  const SiteEnergy none =
      spiking_site_energy({}, SpikeStatistics(), {.inputs = 4}, WeightFetch::kShared);
  EXPECT_EQ(none.executed.total(), 0);
}

TEST(EnergyConstants, AreReadFromText) {
  const EnergyConstants defaults = parse_energy_constants("", "x");
  EXPECT_EQ(defaults.fp16_mac, 1.5);
  EXPECT_EQ(defaults.int8_mac, 0.23);
  EXPECT_EQ(defaults.int8_add, 0.03);
  const EnergyConstants c = parse_energy_constants(
      "# ours\r\nint8_add=0.02\r\n\n  dram_byte = 1e2  # HBM\n\tsram_byte\t=\t0", "x");
  EXPECT_EQ(c.int8_add, 0.02);
  EXPECT_EQ(c.dram_byte, 100);
  EXPECT_EQ(c.sram_byte, 0);
  EXPECT_EQ(c.fp16_mac, 1.5);
}

TEST(EnergyConstants, WrongTextIsRefusedWithItsLine) {
  const auto refusal = [](std::string_view text) {
    return test::message_of(ErrorKind::kData, [&] { parse_energy_constants(text, "energy.txt"); });
  };
  EXPECT_EQ(refusal("\nfp32_mac = 1"),
            "energy.txt: line 2: expected fp16_mac, int8_mac, int8_add, dram_byte or sram_byte, "
            "got 'fp32_mac'");
  EXPECT_EQ(refusal("int8_add 3"),
            "energy.txt: line 1: expected 'name = number', got 'int8_add 3'");
  EXPECT_EQ(refusal("int8_add = 1\nint8_add = 1"),
            "energy.txt: line 2: int8_add: expected it once, got it again");
  for (const char* number : {"", "-1", "nan", "inf", "1e999", "0x10", "1 2", "1pJ", "= 1"}) {
    EXPECT_EQ(
        refusal(std::string("int8_add = ") + number),
        fmt::format("energy.txt: line 1: expected a number of picojoules, 0 or more, got '{}'",
                    number));
  }
  EXPECT_NE(refusal(std::string_view("\0", 1)), "nothing was thrown");
  EXPECT_NE(refusal("="), "nothing was thrown");
}

// No text crashes the parser.
TEST(EnergyConstants, RandomTextIsReadOrRefused) {
  Rng rng(1);
  constexpr std::string_view kPieces[] = {"int8_add", "fp16_mac", "=",    " ",  "\n", "#",
                                          "1.5",      "-",        "\xff", "e9", "\r", "\t"};
  for (int trial = 0; trial < 20000; ++trial) {
    std::string text;
    while (rng.below(12) > 0) text += kPieces[rng.below(std::ssize(kPieces))];
    try {
      parse_energy_constants(text, "x");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
    }
  }
}

}  // namespace
}  // namespace spb::spike
