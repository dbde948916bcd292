#include "spike/energy/energy.h"

#include "core/error.h"

namespace spb::spike {
namespace {

constexpr double kOutputBytes = 4;

void check_matrix(const MatrixShape& matrix, int64_t rows) {
  check(matrix.inputs >= 0 && matrix.outputs >= 0 && matrix.reads >= 0 && rows >= 0,
        "energy: sizes: expected 0 or more, got {} inputs, {} outputs, {} reads, {} rows",
        matrix.inputs, matrix.outputs, matrix.reads, rows);
}

struct Work {
  double entries;   // n
  double products;  // n N
  double weights;   // K N, times the reads
  double outputs;   // rows N
};

Work work_of(const MatrixShape& matrix, int64_t rows) {
  const auto outputs = static_cast<double>(matrix.outputs);
  const double entries = static_cast<double>(rows) * static_cast<double>(matrix.inputs);
  const double weights = static_cast<double>(matrix.inputs) * outputs;
  return {entries, entries * outputs, weights * static_cast<double>(matrix.reads),
          static_cast<double>(rows) * outputs};
}

// Elements of `bytes` bytes: fetched weights, weights used, inputs.
double memory(const EnergyConstants& constants, const Work& work, double fetched, double used,
              double bytes) {
  const double sram = (used + work.entries) * bytes + work.outputs * kOutputBytes;
  return fetched * bytes * constants.dram_byte + sram * constants.sram_byte;
}

// The dense figures; `executed` is left to the caller.
SiteEnergy dense_figures(const EnergyConstants& constants, const Work& work) {
  SiteEnergy energy;
  energy.products = work.products;
  energy.int8_dense = {work.products * constants.int8_mac,
                       memory(constants, work, work.weights, work.products, 1)};
  energy.fp16_dense = {work.products * constants.fp16_mac,
                       memory(constants, work, work.weights, work.products, 2)};
  return energy;
}

void add(Energy& into, const Energy& from) {
  into.compute += from.compute;
  into.memory += from.memory;
}

}  // namespace

SiteEnergy& SiteEnergy::operator+=(const SiteEnergy& other) {
  add(executed, other.executed);
  add(int8_dense, other.int8_dense);
  add(fp16_dense, other.fp16_dense);
  products += other.products;
  synaptic_operations += other.synaptic_operations;
  return *this;
}

SiteEnergy spiking_site_energy(const EnergyConstants& constants, const SpikeStatistics& statistics,
                               const MatrixShape& matrix, WeightFetch fetch) {
  check_matrix(matrix, statistics.rows());
  check(statistics.rows() == 0 || statistics.channels() == matrix.inputs,
        "energy: statistics: expected {} channels, got {}", matrix.inputs, statistics.channels());
  const Work work = work_of(matrix, statistics.rows());
  const auto outputs = static_cast<double>(matrix.outputs);
  const double used = static_cast<double>(statistics.entries() - statistics.silent()) * outputs;
  const double fetched = fetch == WeightFetch::kEventDriven ? used : work.weights;
  SiteEnergy energy = dense_figures(constants, work);
  energy.synaptic_operations = static_cast<double>(statistics.spike_sum()) * outputs;
  energy.executed = {energy.synaptic_operations * constants.int8_add,
                     memory(constants, work, fetched, used, 1)};
  return energy;
}

SiteEnergy dense_site_energy(const EnergyConstants& constants, int64_t rows,
                             const MatrixShape& matrix, DenseFormat format) {
  check_matrix(matrix, rows);
  SiteEnergy energy = dense_figures(constants, work_of(matrix, rows));
  energy.executed = format == DenseFormat::kInt8 ? energy.int8_dense : energy.fp16_dense;
  return energy;
}

}  // namespace spb::spike
