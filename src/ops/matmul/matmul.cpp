// matmul: checks its arguments and chooses the path. The other files of this folder:
//   matmul_weight         preparation; matmul_pack, matmul_pack_cpu_kernels interleave blocks into
//                         cells (matmul_cells.h)
//   matmul_cells          block formats x int8; matmul_cells_cpu_kernels, matmul_cell_codes.h
//   matmul_tiles          bf16 tiles (AMX); matmul_expand_cpu_amx converts to tiles
//                         (matmul_tiles.h), matmul_tiles_cpu_amx multiplies them
//   matmul_row_tiles      the same with bf16 rows of weights as they lie
//   matmul_float_dots, matmul_float_panels   float rows, few and many tokens;
//                         matmul_float_cpu_kernels
//   matmul_path.h         what the paths share: targets in one row, split over the threads
//   matmul_cuda, matmul_weight_cuda, matmul_planes.cuh   the same on a CUDA device;
//                         matmul_quantized_rows_cuda few rows of x and blocks in tiles
//   matmul_reference      the oracle
#include "ops/matmul/matmul.h"

#include <algorithm>
#include <new>
#include <type_traits>

#include "core/error.h"
#include "core/isa.h"
#include "core/tensor_check.h"
#include "ops/matmul/matmul_cuda.h"
#include "ops/matmul/matmul_path.h"

namespace spb::ops {
namespace {

void check_target(const Device& device, const MatmulArgs& args, size_t index) {
  const MatmulTarget& target = args.targets[index];
  check(target.weight != nullptr && target.weight->defined(),
        "matmul: target {}: expected a prepared weight, got none", index);
  const int64_t rows = target.weight->rows();
  check(args.x.shape().last() == target.weight->columns(),
        "matmul: target {}: expected x with {} columns, got {}", index, target.weight->columns(),
        args.x.shape().last());
  const bool dtype_fits =
      target.y.dtype() == DType::kF32 || (device.is_cuda() && target.y.dtype() == args.x.dtype());
  check((target.y.defined() || target.y.shape().rows() == 0) && dtype_fits &&
            target.y.shape().last() == rows && target.y.shape().rows() == args.x.shape().rows(),
        "matmul: target {}: y: expected f32 [{}, {}], got {} {}", index, args.x.shape().rows(),
        rows, name(target.y.dtype()), target.y.shape().to_string());
  check(!target.bias.defined() ||
            (target.bias.dtype() == DType::kF32 && target.bias.shape().elements() == rows),
        "matmul: target {}: bias: expected f32 [{}], got {} {}", index, rows,
        name(target.bias.dtype()), target.bias.shape().to_string());
  check_no_overlap("matmul", "y", target.y, "x", args.x);
}

enum class Path { kTiles, kRowTiles, kCells, kFloatPanels, kFloatDots };

// From so many rows of x on, expanding the weights for tile products is worth its while.
constexpr int64_t kTileTokens = 16;
// The same for interleaving float weights.
constexpr int64_t kPanelTokens = 32;

// bf16 rows are multiplied where they lie while there are few rows of x, all of which stay in the
// second-level cache with the weights that pass by.
constexpr int64_t kRowTileTokens = 512;
constexpr int64_t kRowTileBytes = int64_t{5} << 18;  // of x in bf16

bool suits_row_tiles(const MatmulWeight& weight, int64_t tokens) {
  return weight.dtype() == DType::kBF16 && tokens < kRowTileTokens &&
         tokens * row_bytes(DType::kBF16, weight.columns()) <= kRowTileBytes;
}

Path path_of(const MatmulWeight& weight, int64_t tokens) {
  const DType dtype = weight.dtype();
  if (isa() == Isa::kAmx && tokens >= kTileTokens && dtype != DType::kF32) {
    return suits_row_tiles(weight, tokens) ? Path::kRowTiles : Path::kTiles;
  }
  if (is_cell_dtype(dtype)) return Path::kCells;
  return tokens >= kPanelTokens ? Path::kFloatPanels : Path::kFloatDots;
}

void run_path(Path path, Context& context, const PathArgs& args) {
  switch (path) {
    case Path::kTiles: return multiply_tiles(context, args);
    case Path::kRowTiles: return multiply_row_tiles(context, args);
    case Path::kCells: return multiply_cells(context, args);
    case Path::kFloatPanels: return multiply_float_panels(context, args);
    case Path::kFloatDots: return multiply_float_dots(context, args);
  }
}

// A sum that is added to y is formed apart from it, so that it has the bits it would have alone.
TensorView place_of_sums(Context& context, const MatmulTarget& target) {
  return target.accumulate ? context.arena().tensor(target.y.shape()) : target.y;
}

// Targets that take the same path share one conversion of x and one parallel region.
void multiply(Context& context, const MatmulArgs& args) {
  static_assert(std::is_trivially_destructible_v<PathTarget>);
  Arena::Scope scope(context.arena());
  const auto most = static_cast<int64_t>(args.targets.size());
  auto* targets = context.arena().allocate<PathTarget>(most);
  auto* chosen = context.arena().allocate<const PathTarget*>(most);
  for (int64_t t = 0; t < most; ++t) {
    const MatmulTarget& target = args.targets[static_cast<size_t>(t)];
    new (targets + t)
        PathTarget{target.weight, target.bias, place_of_sums(context, target), target.y};
  }
  for (const Path path :
       {Path::kTiles, Path::kRowTiles, Path::kCells, Path::kFloatPanels, Path::kFloatDots}) {
    size_t count = 0;
    for (int64_t t = 0; t < most; ++t) {
      if (path_of(*targets[t].weight, args.x.shape().rows()) == path) chosen[count++] = targets + t;
    }
    if (count > 0) run_path(path, context, {args.x, {chosen, count}});
  }
}

}  // namespace

RowOutput output_of(const PathTarget& target, int64_t first_row) {
  RowOutput out{};
  out.y = target.sums.as<float>() + first_row;
  out.stride = target.sums.row_stride_bytes() / static_cast<int64_t>(sizeof(float));
  if (target.bias.defined()) out.bias = target.bias.as<float>() + first_row;
  return out;
}

void add_sums(const GroupRange& range) {
  const PathTarget& target = *range.target;
  if (target.sums.data() == target.y.data()) return;
  const int64_t first = range.begin * kGroupRows;
  const int64_t count = std::min(range.end * kGroupRows, target.weight->rows()) - first;
  for (int64_t i = 0; i < target.y.shape().rows(); ++i) {
    const float* sums = target.sums.row_as<float>(i) + first;
    float* y = target.y.row_as<float>(i) + first;
    for (int64_t n = 0; n < count; ++n) y[n] += sums[n];
  }
}

void matmul(Context& context, const MatmulArgs& args) {
  const bool defined = args.x.defined() || args.x.shape().rows() == 0;
  check(defined, "matmul: x: expected a matrix, got nothing");
  check_activation("matmul", "x", args.x, context.device(), args.x.shape());
  for (size_t t = 0; t < args.targets.size(); ++t) check_target(context.device(), args, t);
  if (args.x.shape().rows() == 0) return;
  if (context.device().is_cuda()) return matmul_cuda(context, args);
  multiply(context, args);
}

}  // namespace spb::ops
