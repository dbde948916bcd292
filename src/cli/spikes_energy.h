// Energy of a run by part of the model, estimated from its spikes.
//
// A part is a site over all layers, or something without spikes: attention, recurrent states,
// routed experts, the head. Norms, softmax, gates and the embedding are left out; they are no
// products of matrices. Two ways of running are told apart, because weights fetched from memory
// dominate:
//   together   as the text was run: one fetch of the weights serves all tokens of a call
//   alone      one token after another, as replies are made: every token fetches them, and where
//              spikes enter only those of the channels that fire
// How parts without spikes are counted: block-quantised weights as 8-bit products, floats and all
// of attention and recurrent states as 16-bit ones. Spikes of queries are not made use of.
#pragma once

#include <string>
#include <vector>

#include "cli/activity_recorder.h"
#include "model/model.h"
#include "spike/energy/energy.h"

namespace spb::cli {

struct EnergyPart {
  std::string name;
  std::string execution;  // "spikes", "int8", "fp16", "mixed"
  spike::SiteEnergy together;
  spike::SiteEnergy alone;
};

struct EnergyReport {
  int64_t tokens = 0;             // that the sums below are over
  std::vector<EnergyPart> parts;  // in the order of the model; the last one is the total
  const EnergyPart& total() const { return parts.back(); }
};

EnergyReport estimate_energy(const model::Model& model, const ActivityRecorder& recorder,
                             const spike::EnergyConstants& constants);

}  // namespace spb::cli
