#include <array>
#include <cmath>

#include "core/isa.h"
#include "core/tensor_check.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_inputs_cuda.h"
#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::ops {
namespace {

constexpr const char* kName = "gated_linear_attention_inputs";
constexpr std::array<std::string_view, 2> kFeatureMaps = {"relu", "sigmoid"};
constexpr int64_t kGrainElements = 16384;  // below this, waking a thread costs more than the work

void check_args(const Device& device, const GatedLinearAttentionInputsArgs& args) {
  check_activation(kName, "q", args.q, device, args.q.shape());
  check_activation(kName, "k", args.k, device, args.k.shape());
  check_activation(kName, "g", args.g, device, args.tied_gate ? args.k.shape() : args.g.shape());
  check_no_overlap(kName, "q", args.q, "k", args.k);
  check_no_overlap(kName, "q", args.q, "g", args.g);
  check_no_overlap(kName, "k", args.k, "g", args.g);
  check(std::isfinite(args.gate_logit_normalizer) && args.gate_logit_normalizer > 0,
        "{}: gate_logit_normalizer: expected a number > 0, got {}", kName,
        args.gate_logit_normalizer);
  check(!args.tied_gate || args.feature_map == FeatureMap::kSigmoid,
        "{}: tied_gate: expected the feature map sigmoid, got {}: 1 - k would be no decay", kName,
        name(args.feature_map));
}

// function(row, elements), over as many rows of `shape` as pay for a thread.
template <typename Function>
void for_each_row(Context& context, const Shape& shape, Function function) {
  const int64_t width = shape.last();
  if (width == 0) return;
  const int64_t grain = (kGrainElements + width - 1) / width;
  context.pool().parallel_for(shape.rows(), grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) function(row, width);
  });
}

}  // namespace

std::string_view name(FeatureMap map) { return kFeatureMaps.at(static_cast<size_t>(map)); }

std::optional<FeatureMap> parse_feature_map(std::string_view name) {
  for (size_t i = 0; i < kFeatureMaps.size(); ++i) {
    if (kFeatureMaps[i] == name) return static_cast<FeatureMap>(i);
  }
  return std::nullopt;
}

void gated_linear_attention_inputs(Context& context, const GatedLinearAttentionInputsArgs& args) {
  check_args(context.device(), args);
  if (context.device().is_cuda()) return gated_linear_attention_inputs_cuda(context, args);
  const GatedInputKernels& kernels =
      select_isa(isa_portable::kGatedInputKernels, isa_avx2::kGatedInputKernels,
                 isa_avx512::kGatedInputKernels);
  const auto map = args.feature_map == FeatureMap::kRelu ? kernels.rectify : kernels.squash;
  for_each_row(context, args.q.shape(),
               [&](int64_t row, int64_t width) { map(args.q.row_as<float>(row), width); });
  if (args.tied_gate) {
    for_each_row(context, args.k.shape(), [&](int64_t row, int64_t width) {
      kernels.tied_gate(args.k.row_as<float>(row), args.g.row_as<float>(row), width);
    });
    return;
  }
  for_each_row(context, args.k.shape(),
               [&](int64_t row, int64_t width) { map(args.k.row_as<float>(row), width); });
  const float factor = 1.0f / args.gate_logit_normalizer;
  for_each_row(context, args.g.shape(), [&](int64_t row, int64_t width) {
    kernels.log_gate(args.g.row_as<float>(row), width, factor);
  });
}

}  // namespace spb::ops
