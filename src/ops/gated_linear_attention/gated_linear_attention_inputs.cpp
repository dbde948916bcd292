#include <algorithm>
#include <array>
#include <cmath>

#include "core/isa.h"
#include "core/tensor_check.h"
#include "ops/gated_linear_attention/gated_linear_attention_cpu.h"
#include "ops/gated_linear_attention/gated_linear_attention_inputs_cuda.h"
#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::ops {
namespace {

constexpr const char* kName = "gated_linear_attention_inputs";
constexpr std::array<std::string_view, 2> kFeatureMaps = {"relu", "sigmoid"};
constexpr int64_t kGrainElements = 16384;  // below this, waking a thread costs more than the work

void check_heads(const Device& device, const GatedLinearAttentionInputsArgs& args) {
  check_activation(kName, "q", args.q, device, args.q.shape());
  check_activation(kName, "k", args.k, device, args.k.shape());
  check_no_overlap(kName, "q", args.q, "k", args.k);
  check_no_overlap(kName, "q", args.q, "g", args.g);
  check_no_overlap(kName, "k", args.k, "g", args.g);
}

void check_args(const Device& device, const GatedLinearAttentionInputsArgs& args) {
  check_activation(kName, "g", args.g, device, args.tied_gate ? args.k.shape() : args.g.shape());
  if (args.q.defined() || args.k.defined() || args.tied_gate) check_heads(device, args);
  check(std::isfinite(args.gate_logit_normalizer) && args.gate_logit_normalizer > 0,
        "{}: gate_logit_normalizer: expected a number > 0, got {}", kName,
        args.gate_logit_normalizer);
  check(!args.tied_gate || args.feature_map == FeatureMap::kSigmoid,
        "{}: tied_gate: expected the feature map sigmoid, got {}: 1 - k would be no decay", kName,
        name(args.feature_map));
}

const GatedInputKernels& select_kernels() {
  return select_isa(isa_portable::kGatedInputKernels, isa_avx2::kGatedInputKernels,
                    isa_avx512::kGatedInputKernels);
}

// function(row, elements), over as many rows of `tensor` as pay for a thread.
template <typename Function>
void for_each_row(Context& context, const ConstTensorView& tensor, Function function) {
  const int64_t width = tensor.shape().last();
  if (!tensor.defined() || width == 0) return;
  const int64_t grain = (kGrainElements + width - 1) / width;
  context.pool().parallel_for(tensor.shape().rows(), grain, [&](int64_t begin, int64_t end, int) {
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
  const GatedInputKernels& kernels = select_kernels();
  const auto map = [&](const TensorView& x) {
    const auto kernel = args.feature_map == FeatureMap::kRelu ? kernels.rectify : kernels.squash;
    for_each_row(context, x,
                 [&](int64_t row, int64_t width) { kernel(x.row_as<float>(row), width); });
  };
  map(args.q);
  if (args.tied_gate) {
    for_each_row(context, args.k, [&](int64_t row, int64_t width) {
      kernels.tied_gate(args.k.row_as<float>(row), args.g.row_as<float>(row), width);
    });
    return;
  }
  map(args.k);
  const float factor = 1.0f / args.gate_logit_normalizer;
  for_each_row(context, args.g, [&](int64_t row, int64_t width) {
    kernels.log_gate(args.g.row_as<float>(row), width, factor);
  });
}

TensorView rectified(Context& context, const ConstTensorView& x) {
  const GatedInputKernels& kernels = select_kernels();
  const TensorView out = context.arena().tensor(x.shape());
  for_each_row(context, x, [&](int64_t row, int64_t width) {
    std::copy_n(x.row_as<float>(row), width, out.row_as<float>(row));
    kernels.rectify(out.row_as<float>(row), width);
  });
  return out;
}

}  // namespace spb::ops
