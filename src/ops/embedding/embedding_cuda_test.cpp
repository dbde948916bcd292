#include "core/block_formats.h"
#include "core/test_cuda.h"
#include "ops/embedding/embedding.h"
#include "ops/test_row_counts.h"

namespace spb::ops {
namespace {

using EmbeddingCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Formats, EmbeddingCuda,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0,
                                         DType::kQ4_0, DType::kQ4_1),
                         test::dtype_name);

Tensor random_table(Rng& rng, DType dtype, const Shape& shape) {
  const Tensor values = test::random_tensor(rng, shape);
  Tensor table(dtype, shape);
  for (int64_t i = 0; i < shape[0]; ++i) {
    quantize_row(dtype, values.as<float>() + i * shape[1], table.view().row(i), shape[1]);
  }
  return table;
}

TEST_P(EmbeddingCuda, GivesTheRowsBitForBit) {
  Rng rng(41);
  const Shape shape{50, 96};
  const Tensor table = random_table(rng, GetParam(), shape);
  const std::vector<int32_t> ids = {0, 49, 7, 7, 23};
  Tensor expected(DType::kF32, Shape{5, shape[1]});
  embedding_reference({ids, table, expected});
  const Tensor table_device = to_device(context(), table);
  Tensor y = test::poisoned(context(), expected.shape());
  embedding(context(), {ids, table_device, y});
  EXPECT_TRUE(test::same_bits(test::take(context(), y).view(), expected.view()));
}

// As models ask for them: a prompt at once, and activations in bf16, rounded once.
TEST_P(EmbeddingCuda, AnyNumberOfRowsInEitherDtype) {
  Rng rng(42);
  const Tensor table = random_table(rng, GetParam(), Shape{37, 32});
  const Tensor table_device = to_device(context(), table);
  for (const int64_t rows : kAwkwardRows) {
    std::vector<int32_t> ids(static_cast<size_t>(rows));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(37));
    Tensor exact(DType::kF32, Shape{rows, 32});
    embedding_reference({ids, table, exact});
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Tensor expected = test::take(context(), test::put(context(), exact, dtype));
      Tensor y = test::poisoned(context(), exact.shape(), dtype);
      embedding(context(), {ids, table_device, y});
      EXPECT_TRUE(test::same_bits(test::take(context(), y).view(), expected.view()))
          << rows << " " << name(dtype);
    }
  }
}

}  // namespace
}  // namespace spb::ops
