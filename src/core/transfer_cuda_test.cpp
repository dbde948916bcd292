// Memory of a CUDA device on its way through streams.
#include "core/test_cuda.h"

namespace spb {
namespace {

using TransferCuda = test::OnCuda;
INSTANTIATE_TEST_SUITE_P(Dtypes, TransferCuda, testing::Values(DType::kF32), test::dtype_name);

// New memory is clear, and stays what a stream makes of it at once. So much memory is cleared for
// longer than it takes the stream to write its end.
TEST_P(TransferCuda, StreamsWriteNewMemoryAtOnce) {
  constexpr int64_t kRows = int64_t{1} << 16;
  constexpr int64_t kColumns = int64_t{1} << 12;
  const std::vector<float> written = {1, 2, 3, 4};
  Tensor memory(GetParam(), Shape{kRows, kColumns}, context().device());
  const TensorView end = memory.view().rows(kRows - 1, 1);
  context().stream().copy_to_device(end.data(), written.data(), 4 * sizeof(float));
  Tensor seen(GetParam(), Shape{1, kColumns});
  to_host(context(), end, seen);
  for (int64_t c = 0; c < kColumns; ++c) {
    EXPECT_EQ(seen.as<float>()[c], c < 4 ? written[static_cast<size_t>(c)] : 0.0f) << c;
  }
}

// What a stream is still busy with is there when a tensor comes to the host, and is not disturbed.
TEST_P(TransferCuda, CopiesWaitForStreams) {
  constexpr int64_t kLarge = int64_t{1} << 28;
  Rng rng(1);
  const Tensor from(DType::kI8, Shape{kLarge}, context().device());
  Tensor to(DType::kI8, Shape{kLarge}, context().device());
  const Tensor written = to_device(context(), test::random_tensor(rng, Shape{64}));
  Tensor last(GetParam(), Shape{64}, context().device());
  for (int i = 0; i < 40; ++i) copy_tensor(context(), from, to);
  copy_tensor(context(), written, last);
  EXPECT_TRUE(test::same_bits(to_host(last), to_host(written)));
}

}  // namespace
}  // namespace spb
