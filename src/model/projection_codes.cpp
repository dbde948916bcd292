#include "model/projection_codes.h"

#include <cmath>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/widen.h"

namespace spb::model {
namespace {

void check_scales(const Tensor& scales) {
  for (int64_t row = 0; row < scales.shape()[0]; ++row) {
    for (int64_t group = 0; group < scales.shape()[1]; ++group) {
      const float scale = scales.view().row_as<float>(row)[group];
      check_data(std::isfinite(scale) && scale > 0,
                 "scales: row {}, group {}: expected a finite number above 0, got {}", row, group,
                 scale);
    }
  }
}

std::vector<spike::CodeExcess> read_residual(ConstTensorView codes, ConstTensorView view) {
  std::vector<spike::CodeExcess> residual;
  if (!view.defined()) return residual;
  for (int64_t i = 0; i < view.shape()[0]; ++i) {
    const auto* numbers = view.row_as<int32_t>(i);
    residual.push_back({numbers[0], numbers[1], numbers[2]});
  }
  spike::check_residual(codes, residual, ErrorKind::kData);
  return residual;
}

}  // namespace

ProjectionCodes::ProjectionCodes(Context& context, const LinearWeights& weights,
                                 ConstTensorView importance) {
  if (weights.weight.dtype() == DType::kI8) {
    stored_codes_ = weights.weight;
    codes_.scales = widened(weights.scales);
    check_scales(codes_.scales);
    stored_residual_ = read_residual(weights.weight, weights.residual);
    return;
  }
  const Tensor floats = widened(weights.weight);
  if (!weights.scales.defined()) {
    codes_ = spike::search_scales(context, floats, importance);
    return;
  }
  const bool bf16 = weights.weight.dtype() == DType::kBF16;
  value_dtype_ = bf16 ? DType::kBF16 : DType::kF32;
  const bool bf16_quotient = bf16 && weights.scales.dtype() == DType::kBF16;
  codes_ = spike::split_codes(context, floats, widened(weights.scales), bf16_quotient);
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
