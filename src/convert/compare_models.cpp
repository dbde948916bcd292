#include "convert/compare_models.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"
#include "core/rng.h"
#include "model/forward.h"
#include "model/open_model.h"

namespace spb::convert {
namespace {

Tensor logits_of(Context& context, const std::string& path, const std::vector<int32_t>& tokens) {
  const auto model = model::Model::load(context, path);
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t vocab = model->config().vocab_size;
  model::SequenceState state(*model, {count, count, DType::kF32});
  Tensor logits(DType::kF32, Shape{count, vocab});
  const model::SequenceSlice slice{tokens, &state, model::Logits::kAll};
  model::forward(context, *model, {&slice, 1}, logits);
  return logits;
}

int64_t most_likely(const float* row, int64_t vocab) {
  return std::max_element(row, row + vocab) - row;
}

}  // namespace

ModelDifference compare_models(Context& context, const std::string& expected,
                               const std::string& actual, int64_t tokens) {
  Rng rng(1);
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  const int64_t vocab = model::open_model(expected).config.vocab_size;
  const int64_t actual_vocab = model::open_model(actual).config.vocab_size;
  check(vocab == actual_vocab, "compare: expected vocabularies of one size, got {} and {}", vocab,
        actual_vocab);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(vocab));
  const Tensor a = logits_of(context, expected, ids);
  const Tensor b = logits_of(context, actual, ids);
  ModelDifference found;
  found.tokens = tokens;
  double largest = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    const float* x = a.view().row_as<float>(i);
    const float* y = b.view().row_as<float>(i);
    for (int64_t n = 0; n < vocab; ++n) {
      largest = std::max(largest, std::fabs(static_cast<double>(x[n])));
      found.error = std::max(found.error, std::fabs(static_cast<double>(x[n]) - y[n]));
    }
    found.same_choice += most_likely(x, vocab) == most_likely(y, vocab) ? 1 : 0;
  }
  if (largest > 0) found.error /= largest;
  return found;
}

}  // namespace spb::convert
