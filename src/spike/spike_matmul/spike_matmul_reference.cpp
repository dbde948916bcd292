#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "core/error.h"
#include "spike/spike_matmul/spike_matmul.h"

namespace spb::spike {
namespace {

using Excess = std::map<std::pair<int32_t, int32_t>, int32_t>;

// Row `row` of int8 values with what they are exceeded by.
std::vector<int64_t> whole_row(const ConstTensorView& core, int64_t row, const Excess& excess) {
  const auto* values = core.row_as<int8_t>(row);
  std::vector<int64_t> whole(values, values + core.shape().last());
  const auto first = excess.lower_bound({static_cast<int32_t>(row), 0});
  for (auto e = first; e != excess.end() && e->first.first == row; ++e) {
    whole[static_cast<size_t>(e->first.second)] += e->second;
  }
  return whole;
}

float scaled_sum(const std::vector<int64_t>& codes, const std::vector<int64_t>& counts,
                 const float* scales) {
  float sum = 0;
  for (size_t c = 0; c < codes.size(); c += kScaleGroup) {
    int64_t exact = 0;
    const size_t end = std::min(c + kScaleGroup, codes.size());
    for (size_t i = c; i < end; ++i) exact += codes[i] * counts[i];
    sum = std::fma(static_cast<float>(exact), scales[c / kScaleGroup], sum);
  }
  return sum;
}

}  // namespace

void spike_matmul_reference(const SpikeCounts& counts, const SpikeWeightSource& weight,
                            ConstTensorView bias, TensorView y, bool accumulate) {
  const ConstTensorView core = counts.core;
  check(core.shape().last() == weight.codes.shape().last(),
        "spike_matmul_reference: core: expected {} columns, got {}", weight.codes.shape().last(),
        core.shape().last());
  Excess bursts;
  for (const Burst& b : counts.bursts) bursts[{b.row, b.channel}] += b.excess;
  Excess residual;
  for (const CodeExcess& e : weight.residual) residual[{e.row, e.column}] += e.excess;
  std::vector<std::vector<int64_t>> whole_counts;
  for (int64_t i = 0; i < core.shape().rows(); ++i) {
    whole_counts.push_back(whole_row(core, i, bursts));
  }
  for (int64_t n = 0; n < weight.codes.shape()[0]; ++n) {
    const std::vector<int64_t> codes = whole_row(weight.codes, n, residual);
    const float offset = bias.defined() ? bias.as<float>()[n] : 0.0f;
    for (int64_t i = 0; i < core.shape().rows(); ++i) {
      const float sum =
          scaled_sum(codes, whole_counts[static_cast<size_t>(i)], weight.scales.row_as<float>(n));
      const float value = std::fma(counts.thresholds.as<float>()[i], sum, offset);
      float& result = y.row_as<float>(i)[n];
      result = accumulate ? result + value : value;
    }
  }
}

}  // namespace spb::spike
