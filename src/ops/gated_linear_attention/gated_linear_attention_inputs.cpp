#include <cmath>

#include "core/isa.h"
#include "core/tensor_check.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"
#include "ops/gated_linear_attention/gated_linear_attention_kernels.h"

namespace spb::ops {
namespace {

constexpr const char* kName = "gated_linear_attention_inputs";
constexpr int64_t kGrainElements = 16384;  // below this, waking a thread costs more than the work

template <typename Function>
void for_each_row(Context& context, const TensorView& tensor, Function function) {
  const int64_t width = tensor.shape().last();
  if (width == 0) return;
  const int64_t grain = (kGrainElements + width - 1) / width;
  context.pool().parallel_for(tensor.shape().rows(), grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) function(tensor.row_as<float>(row), width);
  });
}

}  // namespace

void gated_linear_attention_inputs(Context& context, const GatedLinearAttentionInputsArgs& args) {
  check_tensor(kName, "q", args.q, DType::kF32, args.q.shape());
  check_tensor(kName, "k", args.k, DType::kF32, args.k.shape());
  check_tensor(kName, "g", args.g, DType::kF32, args.g.shape());
  check_no_overlap(kName, "q", args.q, "k", args.k);
  check_no_overlap(kName, "q", args.q, "g", args.g);
  check_no_overlap(kName, "k", args.k, "g", args.g);
  check(std::isfinite(args.gate_logit_normalizer) && args.gate_logit_normalizer > 0,
        "{}: gate_logit_normalizer: expected a number > 0, got {}", kName,
        args.gate_logit_normalizer);
  const GatedInputKernels& kernels =
      select_isa(isa_portable::kGatedInputKernels, isa_avx2::kGatedInputKernels,
                 isa_avx512::kGatedInputKernels);
  for_each_row(context, args.q, kernels.rectify);
  for_each_row(context, args.k, kernels.rectify);
  const float factor = 1.0f / args.gate_logit_normalizer;
  for_each_row(context, args.g,
               [&](float* row, int64_t count) { kernels.log_gate(row, count, factor); });
}

}  // namespace spb::ops
