#include "golden/golden_logits.h"

#include <cmath>

namespace spb::golden {

Tensor all_logits(Context& context, const model::Model& model, std::span<const int32_t> tokens,
                  model::SequenceState& state, int64_t prompt,
                  const std::vector<int64_t>& chunk_sizes, const model::ForwardHooks& hooks) {
  const auto total = static_cast<int64_t>(tokens.size());
  Tensor logits(DType::kF32, Shape{total, model.config().vocab_size});
  std::fill_n(logits.as<float>(), logits.shape().elements(), NAN);
  int64_t done = 0;
  for (size_t i = 0; done < total; ++i) {
    int64_t count = 1;
    if (done < prompt) count = std::min(chunk_sizes[i % chunk_sizes.size()], prompt - done);
    const model::SequenceSlice slice{tokens.subspan(static_cast<size_t>(done), size_t(count)),
                                     &state, model::Logits::kAll};
    model::forward(context, model, {&slice, 1}, logits.view().rows(done, count), hooks);
    done += count;
  }
  return logits;
}

double difference(const Expected& expected, const Tensor& logits, int64_t begin) {
  double worst = 0;
  for (size_t i = 0; i < expected.positions.size(); ++i) {
    const int64_t position = expected.positions[i];
    if (position < begin || position >= logits.shape()[0]) continue;
    const float* got = logits.view().row_as<float>(position);
    const float* wanted = expected.logits.view().row_as<float>(static_cast<int64_t>(i));
    for (int64_t c = 0; c < logits.shape()[1]; ++c) {
      const double error = std::fabs(static_cast<double>(got[c]) - static_cast<double>(wanted[c]));
      if (std::isnan(error)) return NAN;
      worst = std::max(worst, error);
    }
  }
  return worst / expected.largest();
}

}  // namespace spb::golden
