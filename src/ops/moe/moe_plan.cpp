// The plan: counting sort of the choices by expert, after those beyond the capacity were marked.
#include <algorithm>
#include <cmath>

#include "core/tensor_check.h"
#include "ops/moe/moe_cuda.h"

namespace spb::ops {
namespace {

constexpr int64_t kLargestAlign = 65536;
constexpr int64_t kNoRow = -1;

void check_plan(const MoePlanArgs& args) {
  const Shape& shape = args.choices.experts.shape();
  check(args.num_experts >= 1, "moe_plan: number of experts: expected at least 1, got {}",
        args.num_experts);
  check(shape.rank() == 2 && shape[1] >= 1 && shape[1] <= args.num_experts,
        "moe_plan: experts: expected [N, k] with k from 1 to {}, got {}", args.num_experts, shape);
  check_tensor("moe_plan", "experts", args.choices.experts, DType::kI32, shape);
  check_tensor("moe_plan", "probabilities", args.choices.probabilities, DType::kF32, shape);
  check(args.align >= 1 && args.align <= kLargestAlign, "moe_plan: align: expected 1 to {}, got {}",
        kLargestAlign, args.align);
  check(args.capacity_factor >= 0, "moe_plan: capacity factor: expected at least 0, got {}",
        args.capacity_factor);
}

// The most choices an expert takes.
int64_t capacity_of(const MoePlanArgs& args) {
  const int64_t choices = args.choices.experts.shape().elements();
  if (args.capacity_factor == 0) return choices;
  constexpr double kRounding = 1e-12;  // of the factor and the product, generously
  const double exact = args.capacity_factor * static_cast<double>(choices) /
                       static_cast<double>(args.num_experts) * (1 - kRounding);
  return exact < static_cast<double>(choices) ? static_cast<int64_t>(std::ceil(exact)) : choices;
}

// The choices of all tokens in a row, and what is known of each expert.
class Planner {
 public:
  Planner(Context& context, const MoePlanArgs& args)
      : arena_(context.arena()),
        args_(args),
        k_(args.choices.experts.shape()[1]),
        choices_(args.choices.experts.shape()[0] * k_),
        assigned_(zeros(args.num_experts)),
        dropped_(zeros(args.num_experts)),
        offsets_(zeros(args.num_experts + 1)),
        row_of_(zeros(choices_)) {}

  MoePlan plan() {
    for (int64_t c = 0; c < choices_; ++c) ++assigned_[expert(c)];
    drop();
    for (size_t e = 0; e < assigned_.size(); ++e) {
      const int64_t rows = assigned_[e] - dropped_[e];
      offsets_[e + 1] = offsets_[e] + (rows + args_.align - 1) / args_.align * args_.align;
    }
    return {.num_tokens = args_.choices.experts.shape()[0],
            .experts_per_token = k_,
            .num_rows = offsets_.back(),
            .offsets = offsets_,
            .token_of = place(),
            .row_of = row_of_,
            .assigned = assigned_,
            .dropped = dropped_};
  }

 private:
  std::span<int64_t> zeros(int64_t count) {
    int64_t* values = arena_.allocate<int64_t>(count);
    std::fill_n(values, count, int64_t{0});
    return {values, static_cast<size_t>(count)};
  }

  size_t expert(int64_t choice) const {
    const int32_t e = args_.choices.experts.row_as<int32_t>(choice / k_)[choice % k_];
    check(e >= 0 && e < args_.num_experts, "moe_plan: experts[{}, {}]: expected 0 to {}, got {}",
          choice / k_, choice % k_, args_.num_experts - 1, e);
    return static_cast<size_t>(e);
  }

  float probability(int64_t choice) const {
    return args_.choices.probabilities.row_as<float>(choice / k_)[choice % k_];
  }

  // Sets dropped_, and row_of_ of the choices that are dropped.
  void drop() {
    const int64_t most = capacity_of(args_);
    bool any = false;
    for (size_t e = 0; e < assigned_.size(); ++e) {
      dropped_[e] = std::max<int64_t>(0, assigned_[e] - most);
      any = any || dropped_[e] > 0;
    }
    if (!any) return;
    const Arena::Scope scope(arena_);
    const std::span<int64_t> ends = zeros(args_.num_experts);
    const std::span<int64_t> grouped = zeros(choices_);
    for (size_t e = 1; e < ends.size(); ++e) ends[e] = ends[e - 1] + assigned_[e - 1];
    for (int64_t c = 0; c < choices_; ++c) grouped[static_cast<size_t>(ends[expert(c)]++)] = c;
    for (size_t e = 0; e < ends.size(); ++e) {
      if (dropped_[e] == 0) continue;
      const auto end = grouped.begin() + ends[e];
      const auto first_dropped = end - dropped_[e];
      if (args_.drop_rule == DropRule::kByProbability) {
        std::nth_element(end - assigned_[e], first_dropped, end,
                         [&](int64_t a, int64_t b) { return more_probable(a, b); });
      }
      std::for_each(first_dropped, end,
                    [&](int64_t c) { row_of_[static_cast<size_t>(c)] = kNoRow; });
    }
  }

  bool more_probable(int64_t a, int64_t b) const {
    const float pa = probability(a);
    const float pb = probability(b);
    if (std::isnan(pa) != std::isnan(pb)) return std::isnan(pb);
    if (pa > pb || pb > pa) return pa > pb;
    return a < b;
  }

  // Sets row_of_ of the choices that stay; returns token_of.
  std::span<const int64_t> place() {
    const std::span<int64_t> token_of = zeros(offsets_.back());
    std::fill(token_of.begin(), token_of.end(), kNoRow);
    const Arena::Scope scope(arena_);
    const std::span<int64_t> next = zeros(args_.num_experts);
    std::copy_n(offsets_.begin(), next.size(), next.begin());
    for (int64_t c = 0; c < choices_; ++c) {
      int64_t& row = row_of_[static_cast<size_t>(c)];
      if (row == kNoRow) continue;
      row = next[expert(c)]++;
      token_of[static_cast<size_t>(row)] = c / k_;
    }
    return token_of;
  }

  Arena& arena_;
  const MoePlanArgs& args_;
  int64_t k_;
  int64_t choices_;
  std::span<int64_t> assigned_;
  std::span<int64_t> dropped_;
  std::span<int64_t> offsets_;
  std::span<int64_t> row_of_;
};

}  // namespace

MoePlan moe_plan(Context& context, const MoePlanArgs& args) {
  check_plan(args);
  if (context.device().is_cuda()) return moe_plan_cuda(context, args, capacity_of(args));
  return Planner(context, args).plan();
}

double load_share(std::span<const int64_t> assigned, int64_t expert) {
  check(expert >= 0 && expert < static_cast<int64_t>(assigned.size()),
        "load_share: expert: expected 0 to {}, got {}", static_cast<int64_t>(assigned.size()) - 1,
        expert);
  double total = 0;
  for (const int64_t load : assigned) total += static_cast<double>(load);
  return total > 0 ? static_cast<double>(assigned[static_cast<size_t>(expert)]) / total : 0.0;
}

double load_imbalance(std::span<const int64_t> assigned) {
  double total = 0;
  double largest = 0;
  for (const int64_t load : assigned) {
    total += static_cast<double>(load);
    largest = std::max(largest, static_cast<double>(load));
  }
  return total > 0 ? largest * static_cast<double>(assigned.size()) / total : 0.0;
}

}  // namespace spb::ops
