// How the tokens of a text spread over the experts of a model: all that spb experts shows.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "engine/perplexity.h"

namespace spb::cli {

// What the router of one layer did. A choice is one (token, expert) pair.
struct LayerLoads {
  int64_t layer = 0;
  int64_t tokens = 0;
  std::vector<int64_t> assigned;   // [experts], choices
  std::vector<double> score_sums;  // [experts]; the scores of a token over all experts add up to 1
  double probability_sum = 0;      // over the choices: what their outputs were multiplied by

  int64_t choices() const;
};

// n experts with load shares f and mean scores P.
struct LoadFigures {
  int64_t hottest = 0;  // of equal ones the first
  int64_t coldest = 0;
  int64_t unused = 0;           // experts that nobody chose
  double imbalance = 0;         // largest load over mean load: 1 to n/k
  double entropy = 0;           // -sum f log2 f, in bits
  double effective = 0;         // 2^entropy: so many experts with equal loads are as mixed
  double mean_probability = 0;  // of the chosen
  double balance_loss = 0;      // n sum f P: 1 when loads or scores are balanced, up to n/k
};
LoadFigures load_figures(const LayerLoads& loads);

struct ExpertsReport {
  std::string model;  // its path
  model::MoeConfig moe;
  int64_t tokens = 0;
  int64_t window = 0;
  engine::Perplexity perplexity;
  std::vector<LayerLoads> layers;  // those with experts, ascending
};

// Adds up what the routers decide while a model runs.
class LoadRecorder : public model::ExpertObserver {
 public:
  explicit LoadRecorder(const model::MoeConfig& moe) : moe_(moe) {}

  void on_choices(int64_t layer, const model::ExpertChoices& choices) override;
  const std::vector<LayerLoads>& layers() const { return layers_; }

 private:
  LayerLoads& of_layer(int64_t layer);

  model::MoeConfig moe_;
  std::vector<LayerLoads> layers_;
};

}  // namespace spb::cli
