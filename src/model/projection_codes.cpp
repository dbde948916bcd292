#include "model/projection_codes.h"

#include "core/block_formats.h"
#include "core/error.h"

namespace spb::model {
namespace {

Tensor widened(ConstTensorView view) {
  Tensor out(DType::kF32, view.shape());
  for (int64_t row = 0; row < view.shape().rows(); ++row) {
    dequantize_row(view.dtype(), view.row(row), out.view().row_as<float>(row), view.shape().last());
  }
  return out;
}

std::vector<spike::CodeExcess> read_residual(ConstTensorView view) {
  std::vector<spike::CodeExcess> residual;
  if (!view.defined()) return residual;
  for (int64_t i = 0; i < view.shape()[0]; ++i) {
    const auto* entry = view.row_as<int32_t>(i);
    residual.push_back({entry[0], entry[1], entry[2]});
  }
  return residual;
}

}  // namespace

ProjectionCodes::ProjectionCodes(Context& context, const LinearWeights& weights,
                                 ConstTensorView importance) {
  if (weights.weight.dtype() == DType::kI8) {
    stored_codes_ = weights.weight;
    codes_.scales = widened(weights.scales);
    stored_residual_ = read_residual(weights.residual);
    return;
  }
  const Tensor floats = widened(weights.weight);
  if (!weights.scales.defined()) {
    codes_ = spike::search_scales(context, floats, importance);
    return;
  }
  const bool bf16 = weights.weight.dtype() == DType::kBF16;
  value_dtype_ = bf16 ? DType::kBF16 : DType::kF32;
  codes_ = spike::split_codes(context, floats, widened(weights.scales), bf16);
}

spike::SpikeWeightSource ProjectionCodes::source() const {
  if (!stored_codes_.defined()) return codes_.source();
  return {stored_codes_, codes_.scales, stored_residual_};
}

Tensor ProjectionCodes::values(Context& context) const {
  const spike::SpikeWeightSource from = source();
  const Shape& shape = from.codes.shape();
  Tensor floats(DType::kF32, shape);
  context.pool().parallel_for(shape[0], 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const auto* codes = from.codes.row_as<int8_t>(n);
      const auto* scales = from.scales.row_as<float>(n);
      float* out = floats.view().row_as<float>(n);
      for (int64_t c = 0; c < shape[1]; ++c) {
        out[c] = static_cast<float>(codes[c]) * scales[c / spike::kScaleGroup];
      }
    }
  });
  for (const spike::CodeExcess& entry : from.residual) {
    check_data(
        entry.row >= 0 && entry.row < shape[0] && entry.column >= 0 && entry.column < shape[1],
        "residual: expected places inside {}, got row {}, column {}", shape.to_string(), entry.row,
        entry.column);
    const int32_t code = from.codes.row_as<int8_t>(entry.row)[entry.column] + entry.excess;
    floats.view().row_as<float>(entry.row)[entry.column] =
        static_cast<float>(code) *
        from.scales.row_as<float>(entry.row)[entry.column / spike::kScaleGroup];
  }
  if (value_dtype_ == DType::kF32) return floats;
  Tensor rounded(value_dtype_, shape);
  for (int64_t n = 0; n < shape[0]; ++n) {
    quantize_row(value_dtype_, floats.view().row_as<float>(n), rounded.view().row(n), shape[1]);
  }
  return rounded;
}

}  // namespace spb::model
