// What the kernels of grouped_matmul for many rows share: the product, and the order of its tiles.
#pragma once

#include "core/cuda/pack.cuh"

namespace spb::ops {

// One target, for experts whose weights lie one after another.
template <typename T>
struct GroupedProduct {
  cuda::Rows<const T> x;
  cuda::Rows<T> y;
  const int64_t* offsets;  // of all experts
  int first_expert;        // the first one with weights
  int last_expert;         // behind the last one
  int64_t rows;            // of x
  int outputs;             // N
  int columns;             // K
};

// Rows of x by rows of an expert's weight.
struct GroupedTile {
  int64_t first_row;
  int64_t end_row;   // of the expert
  int first_output;  // of the expert's
  int expert;        // counted from the first one with weights
};

// The tiles of all experts, counted through; at(t) only ever goes forward. Tiles of eight times
// kRows rows share the weights that they read while these are in the cache.
template <int kRows, int kOutputs>
class TileOrder {
 public:
  template <typename T>
  __device__ explicit TileOrder(const GroupedProduct<T>& p)
      : offsets_(p.offsets),
        first_expert_(p.first_expert),
        last_expert_(p.last_expert),
        expert_(p.first_expert),
        output_tiles_((p.outputs + kOutputs - 1) / kOutputs) {
    if (expert_ < last_expert_) enter();
  }

  // False when there are no more.
  __device__ bool at(int64_t index, GroupedTile& tile) {
    while (expert_ < last_expert_ && index >= before_ + row_tiles_ * output_tiles_) {
      before_ += row_tiles_ * output_tiles_;
      if (++expert_ < last_expert_) enter();
    }
    if (expert_ >= last_expert_) return false;
    const int64_t inside = index - before_;
    const int64_t band = inside / (kBandTiles * output_tiles_);
    const int64_t in_band = inside - band * kBandTiles * output_tiles_;
    const int64_t tall = min(row_tiles_ - band * kBandTiles, int64_t{kBandTiles});
    tile.first_row = begin_ + (band * kBandTiles + in_band % tall) * kRows;
    tile.end_row = end_;
    tile.first_output = static_cast<int>(in_band / tall) * kOutputs;
    tile.expert = expert_ - first_expert_;
    return true;
  }

 private:
  static constexpr int kBandTiles = 8;

  __device__ void enter() {
    begin_ = offsets_[expert_];
    end_ = offsets_[expert_ + 1];
    row_tiles_ = (end_ - begin_ + kRows - 1) / kRows;
  }

  const int64_t* offsets_;
  int first_expert_;
  int last_expert_;
  int expert_;
  int64_t output_tiles_;
  int64_t before_ = 0;  // tiles of the experts before
  int64_t begin_ = 0;
  int64_t end_ = 0;
  int64_t row_tiles_ = 0;
};

// bf16 weights [experts, N, K], the first one's at `weights`. On cards before Hopper, and there.
void grouped_matmul_tiles(Context& context, const GroupedProduct<__nv_bfloat16>& product,
                          const __nv_bfloat16* weights);
void grouped_matmul_warpgroups(Context& context, const GroupedProduct<__nv_bfloat16>& product,
                               const __nv_bfloat16* weights);

}  // namespace spb::ops
