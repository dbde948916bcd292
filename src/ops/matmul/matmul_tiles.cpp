// Many rows of x on the tile unit: weights are expanded to bf16 a few panels at a time, which stay
// in the second-level cache while all strips of x pass by.
#include "ops/matmul/matmul_tiles.h"

#include <algorithm>

#include "ops/matmul/matmul_path.h"

namespace spb::ops {
namespace {

// Of expanded weights per thread: half of the second-level cache of the processors with tiles. For
// fewer tokens, which leave each panel sooner, half of that writes more of them while they are in
// the cache.
constexpr int64_t kPanelCacheBytes = int64_t{1} << 20;
constexpr int64_t kManyTokens = 512;
// At most so many columns are summed before results go to memory. Shorter passes would keep the
// strips in the first-level cache, but move y more often, which costs more.
constexpr int64_t kLongestPass = 1024;
// Passes start at multiples of a K-block.
constexpr int64_t kPassUnit = 256;

struct Scratch {
  std::byte* panels;
  std::byte* groups;  // interleaved rows of weights that are not kept so; may be null
};

int64_t tiles_along(int64_t columns) { return (columns + kTileColumns - 1) / kTileColumns; }

// Columns of a pass; the last one may be shorter.
int64_t pass_columns(int64_t columns) {
  const int64_t passes = (columns + kLongestPass - 1) / kLongestPass;
  if (passes <= 1) return columns;
  return ((columns + passes - 1) / passes + kPassUnit - 1) / kPassUnit * kPassUnit;
}

int64_t pass_bytes(int64_t columns) { return tiles_along(pass_columns(columns)) * kTileBytes; }

// Panels expanded together: an even number, as they are multiplied in pairs.
int64_t panels_at_once(int64_t tokens, int64_t columns) {
  const int64_t bytes = tokens < kManyTokens ? kPanelCacheBytes / 2 : kPanelCacheBytes;
  return std::max<int64_t>(2, bytes / pass_bytes(columns) / 2 * 2);
}

int64_t cell_offset(DType dtype, int64_t columns) { return group_bytes(dtype, columns); }

// Columns [k, k + columns) of groups [first, first + count) to panels.
void expand_panels(const MatmulWeight::Impl& weight, int64_t first, int64_t count, int64_t k,
                   int64_t columns, const Scratch& scratch) {
  for (int64_t i = 0; i < count; ++i) {
    std::byte* panel = scratch.panels + i * pass_bytes(weight.columns);
    if (is_cell_dtype(weight.dtype)) {
      const int64_t bytes = group_bytes(weight.dtype, weight.columns);
      const std::byte* cells = weight.source == nullptr ? weight.owned.data() + (first + i) * bytes
                                                        : scratch.groups + i * bytes;
      isa_amx::expand_cells(weight.dtype, cells + cell_offset(weight.dtype, k),
                            columns / kCellColumns, panel);
    } else {
      const int64_t row = (first + i) * kGroupRows;
      isa_amx::expand_floats(weight.dtype, weight.source + row * weight.row_stride + 2 * k,
                             weight.row_stride, std::min(kGroupRows, weight.rows - row), columns,
                             panel);
    }
  }
}

// Columns [k, k + columns) of groups [first, first + count) where they lie.
NextBytes bytes_of(const MatmulWeight::Impl& weight, int64_t first, int64_t count, int64_t k,
                   int64_t columns) {
  if (count == 0) return {};
  if (weight.source == nullptr) {
    const int64_t bytes = group_bytes(weight.dtype, weight.columns);
    return {weight.owned.data() + first * bytes + cell_offset(weight.dtype, k), bytes,
            cell_offset(weight.dtype, columns), count};
  }
  const int64_t row = first * kGroupRows;
  return {weight.source + row * weight.row_stride + row_bytes(weight.dtype, k), weight.row_stride,
          row_bytes(weight.dtype, columns), std::min(count * kGroupRows, weight.rows - row)};
}

// What is expanded after the pass that ends at column `k`: the next pass, or the first one of the
// `following` groups.
NextBytes bytes_after(const GroupRange& range, int64_t following, int64_t k) {
  const MatmulWeight::Impl& weight = range.target->weight->impl();
  const int64_t step = pass_columns(weight.columns);
  if (k == weight.columns) return bytes_of(weight, range.end, following, 0, step);
  return bytes_of(weight, range.begin, range.end - range.begin, k,
                  std::min(step, weight.columns - k));
}

void multiply_panels(const PathArgs& args, const GroupRange& range, int64_t following,
                     const std::byte* strips, const Scratch& scratch) {
  const MatmulWeight::Impl& weight = range.target->weight->impl();
  const int64_t first_row = range.begin * kGroupRows;
  const int64_t count = range.end - range.begin;
  if (is_cell_dtype(weight.dtype) && weight.source != nullptr) {
    const int64_t bytes = group_bytes(weight.dtype, weight.columns);
    for (int64_t i = 0; i < count; ++i) {
      group_cells(weight, range.begin + i, scratch.groups + i * bytes);
    }
  }
  RowOutput out = output_of(*range.target, first_row);
  const int64_t step = pass_columns(weight.columns);
  for (int64_t k = 0; k < weight.columns; k += step) {
    const int64_t columns = std::min(step, weight.columns - k);
    expand_panels(weight, range.begin, count, k, columns, scratch);
    isa_amx::multiply_tiles({.strips = strips + tiles_along(k) * kTileBytes,
                             .strip_bytes = tiles_along(weight.columns) * kTileBytes,
                             .tokens = args.tokens(),
                             .panels = scratch.panels,
                             .panel_bytes = pass_bytes(weight.columns),
                             .rows = std::min(range.end * kGroupRows, weight.rows) - first_row,
                             .k_tiles = tiles_along(columns),
                             .out = out,
                             .next = args.tokens() < kManyTokens
                                         ? bytes_after(range, following, k + columns)
                                         : NextBytes{}});
    out.bias = nullptr;  // the next pass adds to this one
    out.accumulate = true;
  }
}

int64_t mapped_group_bytes(const PathArgs& args) {
  int64_t bytes = 0;
  for (const PathTarget* target : args.targets) {
    const MatmulWeight::Impl& weight = target->weight->impl();
    if (is_cell_dtype(weight.dtype) && weight.source != nullptr) {
      bytes = std::max(bytes, group_bytes(weight.dtype, weight.columns));
    }
  }
  return bytes;
}

}  // namespace

void multiply_tiles(Context& context, const PathArgs& args) {
  const int64_t strip_bytes = tiles_along(args.columns()) * kTileBytes;
  const int64_t strips = (args.tokens() + kStripRows - 1) / kStripRows;
  const int64_t at_once = panels_at_once(args.tokens(), args.columns());
  const int threads = context.pool().threads();
  std::byte* x = context.arena().allocate_bytes(strips * strip_bytes);
  const int64_t panel_bytes = at_once * pass_bytes(args.columns());
  const int64_t group_scratch = (at_once * mapped_group_bytes(args) + 63) / 64 * 64;
  std::byte* scratch = context.arena().allocate_bytes((panel_bytes + group_scratch) * threads);
  context.pool().parallel_for(strips, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t row = s * kStripRows;
      isa_amx::convert_strip(args.x.as<float>() + row * args.x_stride(), args.x_stride(),
                             std::min(kStripRows, args.tokens() - row), args.columns(),
                             x + s * strip_bytes);
    }
  });
  context.pool().parallel_for(args.groups(), 2, [&](int64_t begin, int64_t end, int thread) {
    std::byte* mine = scratch + (panel_bytes + group_scratch) * thread;
    for_each_target(args, begin, end, [&](const GroupRange& range) {
      for (int64_t g = range.begin; g < range.end; g += at_once) {
        const int64_t batch_end = std::min(g + at_once, range.end);
        multiply_panels(args, {range.target, g, batch_end},
                        std::min(at_once, range.end - batch_end), x, {mine, mine + panel_bytes});
      }
    });
  });
}

}  // namespace spb::ops
