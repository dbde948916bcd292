#include "ops/gated_linear_attention/gated_linear_attention_backward_cpu.h"

#include <algorithm>

#include "core/isa.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward_kernels.h"
#include "ops/gated_linear_attention/gated_linear_attention_cpu.h"

namespace spb::ops {
namespace {

// With their gradients.
GradientTokens tokens_of(const GatedLinearAttentionBackwardArgs& args, int64_t kv_head,
                         int64_t first, int64_t count) {
  const GatedTokens inputs = inputs_of(args, kv_head, first, count);
  const int64_t row = first * args.k.shape()[1] + kv_head;
  return {inputs, args.d_o.row_as<float>(row * inputs.group),
          args.d_q.row_as<float>(row * inputs.group), args.d_k.row_as<float>(row),
          args.d_g.row_as<float>(row)};
}

// Where tile `index` of all tiles of all heads lies in a state [kv heads, key_dim, value_dim].
struct Tiles {
  int64_t key_dim;
  int64_t value_dim;
  int64_t of_head = padded_channels(key_dim) / kChannelTile;
  int64_t floats = value_dim * kChannelTile;

  int64_t head(int64_t index) const { return index / of_head; }
  int64_t channel(int64_t index) const { return index % of_head * kChannelTile; }
  int64_t channels(int64_t index) const { return std::min(kChannelTile, key_dim - channel(index)); }

  // From rows of the state; absent: zeros.
  void load(const ConstTensorView& state, int64_t index, float* tile) const {
    std::fill_n(tile, floats, 0.0f);
    if (!state.defined()) return;
    for (int64_t c = 0; c < channels(index); ++c) {
      const float* row = state.row_as<float>(head(index) * key_dim + channel(index) + c);
      for (int64_t d = 0; d < value_dim; ++d) tile[d * kChannelTile + c] = row[d];
    }
  }
  void store(const float* tile, int64_t index, const TensorView& state) const {
    if (!state.defined()) return;
    for (int64_t c = 0; c < channels(index); ++c) {
      float* row = state.row_as<float>(head(index) * key_dim + channel(index) + c);
      for (int64_t d = 0; d < value_dim; ++d) row[d] = tile[d * kChannelTile + c];
    }
  }
};

// d_v of a block from the parts that the tiles of its head have added, in their order.
void sum_values(Context& context, const GatedLinearAttentionBackwardArgs& args, const Tiles& tiles,
                int64_t first, int64_t count, const float* parts) {
  const int64_t kv_heads = args.k.shape()[1];
  const int64_t part_floats = kBackwardBlock * tiles.value_dim;
  context.pool().parallel_for(count * kv_heads, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const float* part =
          parts + row % kv_heads * tiles.of_head * part_floats + row / kv_heads * tiles.value_dim;
      float* d_v = args.d_v.row_as<float>(first * kv_heads + row);
      std::copy_n(part, tiles.value_dim, d_v);
      for (int64_t i = 1; i < tiles.of_head; ++i) {
        for (int64_t d = 0; d < tiles.value_dim; ++d) d_v[d] += part[i * part_floats + d];
      }
    }
  });
}

}  // namespace

void gated_linear_attention_backward_cpu(Context& context,
                                         const GatedLinearAttentionBackwardArgs& args) {
  const int64_t tokens = args.q.shape()[0];
  const int64_t blocks = (tokens + kBackwardBlock - 1) / kBackwardBlock;
  const Tiles tiles{args.k.shape()[2], args.v.shape()[2]};
  const int64_t count = args.k.shape()[1] * tiles.of_head;
  const BackwardKernels& kernels = select_isa(
      isa_portable::kBackwardKernels, isa_avx2::kBackwardKernels, isa_avx512::kBackwardKernels);
  const Arena::Scope scope(context.arena());
  Arena& arena = context.arena();
  float* before = arena.allocate<float>(blocks * count * tiles.floats);  // states, block by block
  float* gradients = arena.allocate<float>(count * tiles.floats);
  float* parts = arena.allocate<float>(count * kBackwardBlock * tiles.value_dim);
  const int64_t scratch_floats = kBackwardBlock * tiles.floats;
  float* scratch = arena.allocate<float>(scratch_floats * context.pool().threads());
  const auto block_tokens = [&](int64_t tile, int64_t block) {
    const int64_t first = block * kBackwardBlock;
    return tokens_of(args, tiles.head(tile), first, std::min(kBackwardBlock, tokens - first));
  };

  context.pool().parallel_dynamic(count, [&](int64_t tile, int thread) {
    float* state = scratch + scratch_floats * thread;
    tiles.load(args.state, tile, state);
    for (int64_t block = 0; block < blocks; ++block) {
      std::copy_n(state, tiles.floats, before + (block * count + tile) * tiles.floats);
      kernels.advance(block_tokens(tile, block), tiles.channel(tile), state);
    }
    tiles.load(args.d_final_state, tile, gradients + tile * tiles.floats);
  });
  for (int64_t block = blocks - 1; block >= 0; --block) {
    context.pool().parallel_dynamic(count, [&](int64_t tile, int thread) {
      kernels.go_back(block_tokens(tile, block), tiles.channel(tile),
                      before + (block * count + tile) * tiles.floats,
                      gradients + tile * tiles.floats, scratch + scratch_floats * thread,
                      parts + tile * kBackwardBlock * tiles.value_dim);
    });
    const int64_t first = block * kBackwardBlock;
    sum_values(context, args, tiles, first, std::min(kBackwardBlock, tokens - first), parts);
  }
  context.pool().parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      tiles.store(gradients + tile * tiles.floats, tile, args.d_state);
    }
  });
}

}  // namespace spb::ops
