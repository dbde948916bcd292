#include "core/block_formats.h"
#include "core/test_cuda.h"
#include "ops/embedding/embedding.h"

namespace spb::ops {
namespace {

using EmbeddingCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Formats, EmbeddingCuda,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0,
                                         DType::kQ4_0, DType::kQ4_1),
                         test::dtype_name);

TEST_P(EmbeddingCuda, GivesTheRowsBitForBit) {
  Rng rng(41);
  const Shape shape{50, 96};
  const Tensor values = test::random_tensor(rng, shape);
  Tensor table(GetParam(), shape);
  for (int64_t i = 0; i < shape[0]; ++i) {
    quantize_row(GetParam(), values.as<float>() + i * shape[1], table.view().row(i), shape[1]);
  }
  const std::vector<int32_t> ids = {0, 49, 7, 7, 23};
  Tensor expected(DType::kF32, Shape{5, shape[1]});
  embedding_reference({ids, table, expected});
  const Tensor table_device = to_device(context(), table);
  Tensor y = test::poisoned(context(), expected.shape());
  embedding(context(), {ids, table_device, y});
  EXPECT_TRUE(test::same_bits(test::take(context(), y).view(), expected.view()));
}

}  // namespace
}  // namespace spb::ops
