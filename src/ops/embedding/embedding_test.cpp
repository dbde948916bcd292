#include "ops/embedding/embedding.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/block_formats.h"
#include "core/test_tensors.h"

namespace spb::ops {
namespace {

using test::StridedMatrix;

std::vector<DType> table_dtypes() {
  std::vector<DType> dtypes;
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (is_float(dtype) || !is_plain(dtype)) dtypes.push_back(dtype);
  }
  return dtypes;
}

// Random finite rows; formats that cannot be written get random bytes with a tame scale.
Tensor random_table(Rng& rng, DType dtype, int64_t rows, int64_t columns) {
  Tensor table(dtype, Shape{rows, columns});
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t i = 0; i < rows; ++i) {
    std::byte* bytes = table.view().row(i);
    for (float& x : row) x = rng.normal();
    if (can_quantize(dtype)) {
      quantize_row(dtype, row.data(), bytes, columns);
      continue;
    }
    for (int64_t b = 0; b < row_bytes(dtype, columns); ++b) {
      bytes[b] = static_cast<std::byte>(rng.below(0x38));  // two such bytes: an f16 below 1
    }
  }
  return table;
}

class Embedding : public ::testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(Tables, Embedding, ::testing::ValuesIn(table_dtypes()),
                         [](const auto& test) { return std::string(name(test.param)); });

TEST_P(Embedding, RowsAreTheTableBitForBit) {
  Rng rng(1);
  const int64_t columns = 3 * block_elements(GetParam()) * (is_plain(GetParam()) ? 27 : 1);
  const Tensor table = random_table(rng, GetParam(), 41, columns);
  for (const int64_t count : {1, 2, 77, 300}) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(41));
    const StridedMatrix expected(count, columns);
    embedding_reference({ids, table.view(), expected.view()});
    for (const int threads : {1, 2, 5}) {
      Context context(threads);
      const StridedMatrix y(count, columns, 5);
      embedding(context, {ids, table.view(), y.view()});
      EXPECT_TRUE(test::same_bits(y.view(), expected.view()));
      EXPECT_TRUE(y.gaps_untouched());
    }
  }
}

TEST(EmbeddingArguments, WrongOnesAreNamed) {
  Context context(1);
  Rng rng(2);
  const Tensor table = random_table(rng, DType::kF32, 10, 8);
  const Tensor integers(DType::kI32, Shape{10, 8});
  const StridedMatrix y(2, 8);
  const auto message = [&](const std::vector<int32_t>& ids, ConstTensorView from,
                           TensorView to) -> std::string {
    try {
      embedding(context, {ids, from, to});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message({0, 10}, table.view(), y.view()), "embedding: ids[1]: expected 0 to 9, got 10");
  EXPECT_EQ(message({-1, 9}, table.view(), y.view()), "embedding: ids[0]: expected 0 to 9, got -1");
  EXPECT_EQ(message({1}, table.view(), y.view()),
            "embedding: y: expected f32 [1, 8], got f32 [2, 8]");
  EXPECT_EQ(message({0, 1}, integers.view(), y.view()),
            "embedding: table: expected a float or block type, got i32");
  EXPECT_TRUE(std::isnan(y.at(0, 0)));  // nothing is written before all is checked
  EXPECT_EQ(message({}, table.view(), y.view().rows(0, 0)), "accepted");
}

}  // namespace
}  // namespace spb::ops
