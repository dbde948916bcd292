// Dense products on cells: few rows of counts, or a processor without tiles.
#include <algorithm>

#include "core/isa.h"
#include "spike/spike_matmul/spike_path.h"

namespace spb::spike {

RowOutput output_of(const SpikeMatmulTarget& target, int64_t token, int64_t first_row) {
  RowOutput out{};
  out.y = target.y.row_as<float>(token) + first_row;
  out.stride = target.y.row_stride_bytes() / static_cast<int64_t>(sizeof(float));
  if (target.bias.defined()) out.bias = target.bias.as<float>() + first_row;
  out.accumulate = target.accumulate;
  return out;
}

void sum_counts(const int8_t* core, int64_t groups, int32_t* offsets) {
  for (int64_t g = 0; g < groups; ++g, core += kScaleGroup) {
    int32_t sum = 0;
    for (int64_t c = 0; c < kScaleGroup; ++c) sum += core[c];
    offsets[g] = -128 * sum;
  }
}

void multiply_cell_rows(const SpikePathArgs& args, const PieceRange& range, int64_t token,
                        int64_t count, const int32_t* offsets, int64_t* corrections) {
  const auto kernel =
      select_isa(&isa_portable::multiply_spike_cells, &isa_avx2::multiply_spike_cells,
                 &isa_avx512::multiply_spike_cells);
  const SpikeWeight::Impl& weight = range.target->weight->impl();
  const auto multiply = [&](int64_t block, int64_t end, int64_t first, int64_t tokens,
                            const int64_t* extra) {
    const int64_t row = block * kBlockRows;
    kernel({.blocks = weight.block(block),
            .groups = args.groups(),
            .rows = std::min(end * kBlockRows, weight.rows) - row,
            .core = args.core(first),
            .core_stride = args.cores.row_stride_bytes(),
            .offsets = offsets + (first - token) * args.groups(),
            .corrections = extra,
            .thresholds = args.counts.thresholds.as<float>() + first,
            .tokens = tokens,
            .out = output_of(*range.target, first, row)});
  };
  // Runs of rows that need no corrections are multiplied together.
  for (int64_t i = token, end = token + count; i < end;) {
    int64_t next = i;
    while (next < end && !needs_corrections(args, weight, next)) ++next;
    if (next > i) {
      multiply(range.begin, range.end, i, next - i, nullptr);
      i = next;
      continue;
    }
    for (int64_t block = range.begin; block < range.end; ++block) {
      fill_corrections(args, weight, block, i, corrections);
      multiply(block, block + 1, i, 1, corrections);
    }
    ++i;
  }
}

void multiply_dense_cells(Context& context, const SpikePathArgs& args) {
  const int64_t groups = args.groups();
  auto* offsets = context.arena().allocate<int32_t>(args.tokens() * groups);
  auto* corrections =
      context.arena().allocate<int64_t>(context.pool().threads() * groups * kBlockRows);
  const auto sum_rows = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) sum_counts(args.core(i), groups, offsets + i * groups);
  };
  if (args.tokens() == 1) {
    sum_rows(0, 1, 0);
  } else {
    context.pool().parallel_for(args.tokens(), 8, sum_rows);
  }
  const auto blocks = &SpikeWeight::Impl::blocks;
  context.pool().parallel_for(
      count_pieces(args, blocks), 1, [&](int64_t begin, int64_t end, int thread) {
        for_each_target(args, blocks, begin, end, [&](const PieceRange& range) {
          multiply_cell_rows(args, range, 0, args.tokens(), offsets,
                             corrections + thread * groups * kBlockRows);
        });
      });
}

}  // namespace spb::spike
