// compare_models: whether two model files compute the same.
#pragma once

#include <string>

#include "core/context.h"

namespace spb::convert {

struct ModelDifference {
  int64_t tokens = 0;
  double error = 0;         // largest difference of two logits, relative to the largest logit
  int64_t same_choice = 0;  // tokens after which both find the same token most likely
};

// Both models read the same random tokens. Usage error when their vocabularies differ.
ModelDifference compare_models(Context& context, const std::string& expected,
                               const std::string& actual, int64_t tokens = 64);

}  // namespace spb::convert
