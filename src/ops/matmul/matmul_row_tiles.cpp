// Some rows of x on the tile unit by bf16 weights, which are multiplied where they lie: x is
// rearranged instead, and results leave the tile unit transposed.
#include <algorithm>
#include <cstring>

#include "ops/matmul/matmul_path.h"
#include "ops/matmul/matmul_tiles.h"

namespace spb::ops {
namespace {

struct Panels {
  const std::byte* first;
  int64_t bytes;  // of one
  int64_t tokens;
};

void multiply_range(const GroupRange& range, const Panels& x, std::byte* last_rows) {
  const MatmulWeight::Impl& weight = range.target->weight->impl();
  const int64_t first = range.begin * kGroupRows;
  const int64_t end = std::min(range.end * kGroupRows, weight.rows);
  const int64_t whole = (end - first) / kGroupRows * kGroupRows;
  RowProduct product{.rows = weight.source + first * weight.row_stride,
                     .row_stride = weight.row_stride,
                     .row_count = whole,
                     .columns = weight.columns,
                     .panels = x.first,
                     .panel_bytes = x.bytes,
                     .tokens = x.tokens,
                     .out = output_of(*range.target, first)};
  isa_amx::multiply_rows(product);
  if (first + whole == end) return;
  // Less than a tile of rows: there may be no memory behind them.
  const int64_t bytes = row_bytes(weight.dtype, weight.columns);
  std::memset(last_rows, 0, static_cast<size_t>(bytes * kGroupRows));
  for (int64_t n = first + whole; n < end; ++n) {
    std::memcpy(last_rows + (n - first - whole) * bytes, weight.source + n * weight.row_stride,
                static_cast<size_t>(bytes));
  }
  product.rows = last_rows;
  product.row_stride = bytes;
  product.row_count = end - first - whole;
  product.out = output_of(*range.target, first + whole);
  isa_amx::multiply_rows(product);
}

}  // namespace

void multiply_row_tiles(Context& context, const PathArgs& args) {
  const int64_t tiles = (args.columns() + kTileColumns - 1) / kTileColumns;
  const int64_t bytes = tiles * kTileBytes;
  const int64_t panels = (args.tokens() + kStripRows - 1) / kStripRows;
  std::byte* x = context.arena().allocate_bytes(panels * bytes);
  // Holds 16 rows, as a panel does.
  std::byte* last_rows = context.arena().allocate_bytes(bytes * context.pool().threads());
  context.pool().parallel_for(panels, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = p * kStripRows;
      isa_amx::convert_panel(args.x.as<float>() + row * args.x_stride(), args.x_stride(),
                             std::min(kStripRows, args.tokens() - row), args.columns(),
                             x + p * bytes);
    }
  });
  context.pool().parallel_for(args.groups(), 2, [&](int64_t begin, int64_t end, int thread) {
    for_each_target(args, begin, end, [&](const GroupRange& range) {
      multiply_range(range, {x, bytes, args.tokens()}, last_rows + thread * bytes);
    });
  });
}

}  // namespace spb::ops
