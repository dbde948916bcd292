// What tests share that hold the laws of an operator at every instruction-set level.
// Not part of the library.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "core/isa.h"
#include "core/test_errors.h"
#include "core/test_tensors.h"

namespace spb::test {

// A fixture whose tests run at one level each:
//   INSTANTIATE_TEST_SUITE_P(Operator, EveryIsa, testing::ValuesIn(isa_levels()), isa_name);
class EveryIsa : public testing::TestWithParam<Isa> {
 private:
  IsaScope level_{GetParam()};
};

inline std::string isa_name(const testing::TestParamInfo<Isa>& level) {
  return std::string(name(level.param));
}

// The elements of an f32 tensor: comparable, and printed by GoogleTest where they differ.
inline std::vector<float> contents(const ConstTensorView& tensor) {
  return {tensor.as<float>(), tensor.as<float>() + tensor.shape().elements()};
}

// max |a - b|; infinity where one of them is NaN or the sizes differ.
inline double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double(a[i]) - double(b[i]));
    if (std::isnan(difference)) return HUGE_VAL;
    largest = std::max(largest, difference);
  }
  return largest;
}

template <typename Call>
void expect_usage_error(Call&& call, const std::string& part) {
  expect_error(ErrorKind::kUsage, part, call);
}

}  // namespace spb::test
