#include <algorithm>
#include <cmath>

#include "core/isa.h"
#include "ops/rope/rope_kernels.h"

namespace spb::ops {
namespace {

// Elements worth a thread's while: a few microseconds of work with the sines.
constexpr int64_t kGrainElements = 4096;

// A chain of products instead of one power per pair: its relative error of about j * 2^-52 is far
// below what the angle itself loses when it is rounded to double and its sine to f32.
void fill_frequencies(const RopeArgs& args, double* frequencies, int64_t pairs, int64_t padded) {
  const double ratio = std::pow(args.theta, -1.0 / static_cast<double>(pairs));
  const float* factors = args.factors.defined() ? args.factors.as<float>() : nullptr;
  double frequency = 1.0;
  for (int64_t j = 0; j < pairs; ++j) {
    frequencies[j] = factors != nullptr ? frequency / static_cast<double>(factors[j]) : frequency;
    frequency *= ratio;
  }
  std::fill(frequencies + pairs, frequencies + padded, 0.0);
}

}  // namespace

void rope_cpu(Context& context, const RopeArgs& args) {
  const int64_t heads = args.x.shape()[1];
  const int64_t pairs = args.x.shape()[2] / 2;
  const int64_t padded = (pairs + kRopePadding - 1) / kRopePadding * kRopePadding;
  const Arena::Scope scope(context.arena());
  auto* frequencies = context.arena().allocate<double>(padded);
  fill_frequencies(args, frequencies, pairs, padded);
  auto* tables = context.arena().allocate<float>(6 * padded * context.pool().threads());
  const RopeTokens tokens{
      .x = args.x.as<float>(),
      .heads = heads,
      .head_stride = args.x.row_stride_bytes() / static_cast<int64_t>(sizeof(float)),
      .pairs = pairs,
      .interleaved = args.pairs == RopePairs::kInterleaved,
      .positions = args.positions.data(),
      .frequencies = frequencies};
  const auto kernel =
      select_isa(&isa_portable::rope_tokens, &isa_avx2::rope_tokens, &isa_avx512::rope_tokens);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (heads * pairs * 2));
  context.pool().parallel_for(args.x.shape()[0], grain,
                              [&](int64_t begin, int64_t end, int thread) {
                                kernel(tokens, begin, end, tables + 6 * padded * thread);
                              });
}

}  // namespace spb::ops
