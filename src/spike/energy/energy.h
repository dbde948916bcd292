// energy: what a site would cost on 45 nm hardware, from its spike statistics and its matrix.
//
// Every number here is an ESTIMATE: operations and bytes times constants of the literature. It says
// nothing about the machine that runs this program. Not included: the neuron itself, joining bit
// planes, scales, routing of events, leakage.
//
//   n entries of K channels, N outputs, S = one bits of all |counts|, A = entries that fire
//
//                    compute                 weights from DRAM        weights from SRAM    inputs
//   spiking          S N int8_add            event: A N bytes         A N                  n
//                                            shared: reads K N bytes
//   int8 dense       n N int8_mac            reads K N bytes          n N                  n
//   fp16 dense       n N fp16_mac            reads K N 2 bytes        n N 2                n 2
//
// Outputs are n / K rows of N values of 4 bytes written to SRAM in each case, inputs are read from
// it. A weight is fetched from SRAM once for each entry that fires and stays in a register while
// its spikes are added. The report's figure is the compute of the first row over n N: S / n * 0.03
// pJ.
//
// Errors: kData from the parser with the line; kUsage for sizes below 0.
// Sources: M. Horowitz, "Computing's energy problem", ISSCC 2014: 45 nm, 0.9 V. fp16_mac 1.1 + 0.4,
// int8_mac 0.2 + 0.03, int8_add 0.03; DRAM at the low end of 1.3 to 2.6 nJ for 8 bytes, SRAM 20 pJ
// for 8 bytes of a 32 KiB memory. The SpikingBrain-7B report (2025) uses the same three operations.
#pragma once

#include <cstdint>
#include <string_view>

#include "spike/statistics/statistics.h"

namespace spb::spike {

// Picojoules for each operation or byte.
struct EnergyConstants {
  double fp16_mac = 1.5;
  double int8_mac = 0.23;
  double int8_add = 0.03;
  double dram_byte = 162.5;
  double sram_byte = 2.5;
};

// Lines "name = number", names as in EnergyConstants, in any order; '#' begins a comment. What is
// not named keeps its default. Unknown and repeated names, and numbers that are not finite or below
// 0, are errors that begin with `source` and the line. Reading the file is left to the caller.
EnergyConstants parse_energy_constants(std::string_view text, std::string_view source);

struct MatrixShape {
  int64_t inputs = 0;   // K
  int64_t outputs = 0;  // N
  // How often all of it was fetched from DRAM: once for each call of forward, however many rows.
  int64_t reads = 0;
};

// Estimates in picojoules.
struct Energy {
  double compute = 0;
  double memory = 0;
  double total() const { return compute + memory; }
};

struct SiteEnergy {
  Energy executed;    // as the model runs: spikes, or dense for a site without
  Energy int8_dense;  // the same product of 8-bit activations and weights
  Energy fp16_dense;
  double products = 0;             // n N
  double synaptic_operations = 0;  // additions caused by spikes; 0 for a site without

  SiteEnergy& operator+=(const SiteEnergy& other);
};

enum class WeightFetch {
  kShared,       // all weights, `reads` times
  kEventDriven,  // each row of entries fetches the weights of its firing channels
};

// A site whose input is spikes.
SiteEnergy spiking_site_energy(const EnergyConstants& constants, const SpikeStatistics& statistics,
                               const MatrixShape& matrix, WeightFetch fetch);

enum class DenseFormat { kInt8, kFp16 };

// A site without spikes, executed in the given format: `rows` activations of the matrix.
SiteEnergy dense_site_energy(const EnergyConstants& constants, int64_t rows,
                             const MatrixShape& matrix, DenseFormat format);

}  // namespace spb::spike
