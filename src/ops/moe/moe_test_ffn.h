// A feed-forward network of experts for tests and benches: random weights, the operators of this
// folder in the order in which a model calls them, and the same network in plain double loops,
// which share no code with the operators. Not part of the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/block_formats.h"
#include "core/test_tensors.h"
#include "ops/moe/grouped_matmul.h"
#include "ops/moe/moe_dispatch.h"
#include "ops/swiglu/swiglu.h"

namespace spb::ops::test_moe {

struct Sizes {
  int64_t hidden = 64;
  int64_t intermediate = 96;
  int64_t num_experts = 8;
  int64_t experts_per_token = 2;
  int64_t shared_experts = 1;
  DType dtype = DType::kF32;
  bool repack = true;
  int64_t distinct_rows = 1 << 20;  // benches repeat rows: they are quicker to copy than to make

  int64_t bytes_of_matrix() const { return row_bytes(dtype, hidden) * intermediate; }
  // Of all matrices of all experts.
  int64_t bytes() const { return 3 * (num_experts + shared_experts) * bytes_of_matrix(); }
};

struct Settings {
  RouterScore score = RouterScore::kSoftmax;
  bool renormalize = false;
  int64_t align = 1;
  double capacity_factor = 0;
  DropRule drop_rule = DropRule::kByPosition;
};

// One matrix for each routed expert, then one for each shared expert, in the caller's memory.
class ExpertWeights {
 public:
  ExpertWeights(Context& context, Rng& rng, const Sizes& sizes, const Shape& shape,
                std::byte* memory)
      : routed_(static_cast<size_t>(sizes.num_experts)) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape[1]));
    std::vector<float> row(static_cast<size_t>(shape[1]));
    for (int64_t e = 0; e < sizes.num_experts + sizes.shared_experts; ++e) {
      const TensorView source(memory + e * sizes.bytes_of_matrix(), sizes.dtype, shape);
      for (int64_t n = 0; n < shape[0]; ++n) {
        if (n >= sizes.distinct_rows) {
          std::memcpy(source.row(n), source.row(n % sizes.distinct_rows),
                      static_cast<size_t>(source.row_bytes_used()));
          continue;
        }
        for (float& v : row) v = scale * rng.normal();
        quantize_row(sizes.dtype, row.data(), source.row(n), shape[1]);
      }
      sources_.push_back(source);
      prepared_.push_back(prepare_matmul_weight(context, source, sizes.repack));
    }
    for (const MatmulWeight& weight : prepared_) pointers_.push_back(&weight);
  }

  std::span<const MatmulWeight* const> routed() const { return {pointers_.data(), routed_}; }
  const MatmulWeight& weight(int64_t e) const { return prepared_[static_cast<size_t>(e)]; }

  // W x of matrix e in double.
  std::vector<double> multiply(int64_t e, const std::vector<double>& x) const {
    const ConstTensorView& w = sources_[static_cast<size_t>(e)];
    std::vector<float> row(x.size());
    std::vector<double> y;
    for (int64_t n = 0; n < w.shape()[0]; ++n) {
      dequantize_row(w.dtype(), w.row(n), row.data(), w.shape()[1]);
      double sum = 0;
      for (size_t c = 0; c < x.size(); ++c) sum += static_cast<double>(row[c]) * x[c];
      y.push_back(sum);
    }
    return y;
  }

 private:
  std::vector<ConstTensorView> sources_;
  std::vector<MatmulWeight> prepared_;
  std::vector<const MatmulWeight*> pointers_;
  size_t routed_;
};

class MoeFfn {
 public:
  // The weights are made in `memory` (sizes.bytes()), or in memory of its own.
  MoeFfn(Context& context, uint64_t seed, const Sizes& sizes, std::byte* memory = nullptr)
      : sizes_(sizes),
        rng_(seed),
        own_(memory == nullptr ? sizes.bytes() : 0),
        memory_(memory == nullptr ? own_.data() : memory),
        router_source_(sizes.num_experts, sizes.hidden),
        gate_(context, rng_, sizes, Shape{sizes.intermediate, sizes.hidden}, memory_),
        up_(context, rng_, sizes, Shape{sizes.intermediate, sizes.hidden},
            memory_ + sizes.bytes() / 3),
        down_(context, rng_, sizes, Shape{sizes.hidden, sizes.intermediate},
              memory_ + sizes.bytes() / 3 * 2) {
    router_source_.fill_normal(rng_, 1.0f / std::sqrt(static_cast<float>(sizes.hidden)));
    router_ = prepare_matmul_weight(context, router_source_.view());
  }

  // y = sum of the shared experts + sum of the chosen experts weighted by p. Returns the loads.
  std::vector<int64_t> run(Context& context, ConstTensorView x, TensorView y,
                           const Settings& settings = {}) const {
    Arena& arena = context.arena();
    const Arena::Scope scope(arena);
    const int64_t tokens = x.shape()[0];
    const Shape chosen{tokens, sizes_.experts_per_token};
    const TensorView logits = arena.tensor(Shape{tokens, sizes_.num_experts});
    const MoeChoices choices{arena.tensor(DType::kI32, chosen), arena.tensor(chosen)};
    const MatmulTarget to_logits{&router_, {}, logits};
    matmul(context, {x, {&to_logits, 1}});
    moe_route(context, {logits, choices, settings.score, settings.renormalize});
    const MoePlan plan = moe_plan(context, {choices, sizes_.num_experts, settings.align,
                                            settings.capacity_factor, settings.drop_rule});
    const TensorView grouped = arena.tensor(Shape{plan.rows(), sizes_.hidden});
    const TensorView gate = arena.tensor(Shape{plan.rows(), sizes_.intermediate});
    const TensorView up = arena.tensor(Shape{plan.rows(), sizes_.intermediate});
    moe_gather(context, {plan, x, grouped});
    const GroupedMatmulTarget in[] = {{gate_.routed(), gate}, {up_.routed(), up}};
    grouped_matmul(context, {grouped, plan.offsets, in});
    swiglu(context, {gate, up, gate});
    const GroupedMatmulTarget out{down_.routed(), grouped};
    grouped_matmul(context, {gate, plan.offsets, {&out, 1}});
    add_shared_experts(context, x, y);
    moe_scatter(context, {plan, grouped, choices.probabilities, y});
    return {plan.assigned.begin(), plan.assigned.end()};
  }

  void reference(ConstTensorView x, TensorView y, const Settings& settings = {}) const;

  // One expert alone, routed or shared, for all rows.
  void run_expert(Context& context, int64_t e, ConstTensorView x, TensorView y) const {
    const Arena::Scope scope(context.arena());
    const Shape inner{x.shape()[0], sizes_.intermediate};
    const TensorView gate = context.arena().tensor(inner);
    const TensorView up = context.arena().tensor(inner);
    const MatmulTarget in[] = {{&gate_.weight(e), {}, gate}, {&up_.weight(e), {}, up}};
    matmul(context, {x, in});
    swiglu(context, {gate, up, gate});
    const MatmulTarget out{&down_.weight(e), {}, y};
    matmul(context, {gate, {&out, 1}});
  }

  // Of the experts' weights that one token needs.
  int64_t active_bytes() const {
    return 3 * (sizes_.experts_per_token + sizes_.shared_experts) * sizes_.bytes_of_matrix();
  }

 private:
  void add_shared_experts(Context& context, ConstTensorView x, TensorView y) const {
    for (int64_t i = 0; i < y.shape()[0]; ++i) {
      std::fill_n(y.row_as<float>(i), y.shape()[1], 0.0f);
    }
    const TensorView one = context.arena().tensor(y.shape());
    for (int64_t s = 0; s < sizes_.shared_experts; ++s) {
      run_expert(context, sizes_.num_experts + s, x, one);
      for (int64_t i = 0; i < y.shape()[0]; ++i) {
        for (int64_t c = 0; c < y.shape()[1]; ++c) y.row_as<float>(i)[c] += one.row_as<float>(i)[c];
      }
    }
  }

  std::vector<double> expert(int64_t e, const std::vector<double>& x) const {
    std::vector<double> inner = gate_.multiply(e, x);
    const std::vector<double> up = up_.multiply(e, x);
    for (size_t c = 0; c < inner.size(); ++c) inner[c] *= up[c] / (1.0 + std::exp(-inner[c]));
    return down_.multiply(e, inner);
  }

  // p of every expert for one token; 0 for those that are not chosen.
  std::vector<double> weights_of(const std::vector<double>& x, const Settings& settings) const;
  // Sets to 0 what is beyond the capacity.
  void drop(std::vector<std::vector<double>>& p, const Settings& settings) const;

  Sizes sizes_;
  Rng rng_;
  Buffer own_;
  std::byte* memory_;
  test::StridedMatrix router_source_;
  MatmulWeight router_;
  ExpertWeights gate_, up_, down_;
};

inline std::vector<double> MoeFfn::weights_of(const std::vector<double>& x,
                                              const Settings& settings) const {
  std::vector<double> scores;
  double total = 0;
  for (int64_t e = 0; e < sizes_.num_experts; ++e) {
    double logit = 0;
    for (size_t c = 0; c < x.size(); ++c) {
      logit += static_cast<double>(router_source_.row(e)[c]) * x[c];
    }
    const bool sigmoid = settings.score == RouterScore::kSigmoid;
    scores.push_back(sigmoid ? 1.0 / (1.0 + std::exp(-logit)) : std::exp(logit));
    total += sigmoid ? 0.0 : scores.back();
  }
  std::vector<double> descending = scores;
  std::sort(descending.rbegin(), descending.rend());
  const auto k = static_cast<size_t>(sizes_.experts_per_token);
  double divisor = total == 0 ? 1.0 : total;
  if (settings.renormalize) {
    divisor = 0;
    for (size_t j = 0; j < k; ++j) divisor += descending[j];
  }
  for (double& s : scores) s = s >= descending[k - 1] ? s / divisor : 0.0;
  return scores;
}

inline void MoeFfn::drop(std::vector<std::vector<double>>& p, const Settings& settings) const {
  if (settings.capacity_factor == 0) return;
  const double share = settings.capacity_factor * static_cast<double>(sizes_.experts_per_token) *
                       static_cast<double>(p.size()) / static_cast<double>(sizes_.num_experts);
  const auto capacity = static_cast<size_t>(std::ceil(share));
  for (size_t e = 0; e < static_cast<size_t>(sizes_.num_experts); ++e) {
    std::vector<size_t> tokens;
    for (size_t i = 0; i < p.size(); ++i) {
      if (p[i][e] > 0) tokens.push_back(i);
    }
    if (settings.drop_rule == DropRule::kByProbability) {
      std::stable_sort(tokens.begin(), tokens.end(),
                       [&](size_t a, size_t b) { return p[a][e] > p[b][e]; });
    }
    for (size_t i = capacity; i < tokens.size(); ++i) p[tokens[i]][e] = 0;
  }
}

inline void MoeFfn::reference(ConstTensorView x, TensorView y, const Settings& settings) const {
  std::vector<std::vector<double>> inputs, p;
  for (int64_t i = 0; i < x.shape()[0]; ++i) {
    const float* row = x.row_as<float>(i);
    inputs.emplace_back(row, row + sizes_.hidden);
    p.push_back(weights_of(inputs.back(), settings));
  }
  drop(p, settings);
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::vector<double> sum(static_cast<size_t>(sizes_.hidden));
    for (int64_t e = 0; e < sizes_.num_experts + sizes_.shared_experts; ++e) {
      const double weight = e < sizes_.num_experts ? p[i][static_cast<size_t>(e)] : 1.0;
      if (weight == 0) continue;
      const std::vector<double> out = expert(e, inputs[i]);
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += weight * out[c];
    }
    float* row = y.row_as<float>(static_cast<int64_t>(i));
    std::transform(sum.begin(), sum.end(), row, [](double v) { return static_cast<float>(v); });
  }
}

}  // namespace spb::ops::test_moe
