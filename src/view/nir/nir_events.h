// Spike counts as data of the Neuromorphic Intermediate Representation (NIR), in an HDF5 file that
// nir.read_data() of its Python package reads.
//
// Every layer and site is a node "layer_<layer>.<site>" with one observable "spike_counts" of the
// type ValuedEventData: one sample, an event for each count that is not 0.
//   idx    i64 [1, events]   neuron: channel, or head * channels + channel where heads have rows
//   time   f64 [1, events]   place of the token in the text
//   value  f64 [1, events]   count
//   n_neurons, t_max         neurons of a token; tokens read
// Thresholds have no place there: see view/spike_events.h for the whole of a run.
//
// Needs the build option SPB_WITH_HDF5; without it the constructor throws a usage error that says
// so. System errors name the file.
#pragma once

#include <memory>
#include <string>

#include "spike/threshold/threshold.h"
#include "view/spike_events.h"

namespace spb::view {

class NirEventWriter {
 public:
  explicit NirEventWriter(const std::string& path);
  ~NirEventWriter();

  void write(const SpikeBlock& block, const spike::SpikeCounts& counts);
  void finish();  // the file does not exist under its name before

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace spb::view
