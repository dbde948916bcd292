#include <benchmark/benchmark.h>

#include <vector>

#include "core/block_formats.h"
#include "core/test_tensors.h"
#include "ops/embedding/embedding.h"

namespace spb::ops {
namespace {

void embedding_rows(benchmark::State& state, DType dtype) {
  constexpr int64_t kColumns = 2048;
  constexpr int64_t kVocab = 1024;
  const int64_t count = state.range(0);
  Rng rng(1);
  Tensor table(dtype, Shape{kVocab, kColumns});
  std::vector<float> row(kColumns);
  for (int64_t i = 0; i < kVocab; ++i) {
    for (float& x : row) x = rng.normal();
    quantize_row(dtype, row.data(), table.view().row(i), kColumns);
  }
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(kVocab));
  const test::StridedMatrix y(count, kColumns), expected(count, kColumns);
  Context context;
  const EmbeddingArgs args{ids, table.view(), y.view()};
  embedding(context, args);
  embedding_reference({ids, table.view(), expected.view()});
  if (!test::same_bits(y.view(), expected.view())) {
    return state.SkipWithError("differs from the reference");
  }
  for (auto _ : state) embedding(context, args);
  state.SetBytesProcessed(state.iterations() * count *
                          (row_bytes(dtype, kColumns) + kColumns * int64_t{sizeof(float)}));
}
BENCHMARK_CAPTURE(embedding_rows, f16, DType::kF16)->Arg(1)->Arg(512)->UseRealTime();
BENCHMARK_CAPTURE(embedding_rows, bf16, DType::kBF16)->Arg(1)->Arg(512)->UseRealTime();
BENCHMARK_CAPTURE(embedding_rows, q8_0, DType::kQ8_0)->Arg(1)->Arg(512)->UseRealTime();
BENCHMARK_CAPTURE(embedding_rows, q4_1, DType::kQ4_1)->Arg(1)->Arg(512)->UseRealTime();

}  // namespace
}  // namespace spb::ops

BENCHMARK_MAIN();
