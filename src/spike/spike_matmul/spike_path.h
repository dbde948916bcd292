// The ways in which spike_matmul computes. Each handles some targets of one call; arguments have
// been checked.
#pragma once

#include <span>

#include "spike/spike_matmul/spike_matmul.h"
#include "spike/spike_matmul/spike_weight_impl.h"

namespace spb::spike {

// Usage error for arguments that spike_matmul refuses, whatever path it would take.
void check_spike_matmul(const Device& device, const SpikeMatmulArgs& args);

struct SpikePathArgs {
  const SpikeCounts& counts;
  ConstTensorView cores;  // [M, groups * 128]: counts.core, a short last group filled with zeros
  std::span<const SpikeMatmulTarget* const> targets;
  const int64_t* burst_begin;  // [M + 1]: of each row of counts, into counts.bursts

  int64_t tokens() const { return cores.shape()[0]; }
  int64_t columns() const { return cores.shape()[1]; }
  int64_t groups() const { return columns() / kScaleGroup; }
  const int8_t* core(int64_t token) const {
    return reinterpret_cast<const int8_t*>(cores.row(token));
  }
  float threshold(int64_t token) const {
    return reinterpret_cast<const float*>(counts.thresholds.data())[token];
  }
  std::span<const Burst> bursts(int64_t token) const {
    return {counts.bursts.data() + burst_begin[token],
            static_cast<size_t>(burst_begin[token + 1] - burst_begin[token])};
  }
};

// Pieces [begin, end) of one target: blocks of 16 rows, or bands.
struct PieceRange {
  const SpikeMatmulTarget* target;
  int64_t begin;
  int64_t end;
};

// Calls body(PieceRange) for the parts of [begin, end) of all pieces of all targets in a row;
// `pieces` counts those of one weight.
template <typename Body>
void for_each_target(const SpikePathArgs& args, int64_t (SpikeWeight::Impl::*pieces)() const,
                     int64_t begin, int64_t end, Body body) {
  int64_t first = 0;
  for (const SpikeMatmulTarget* target : args.targets) {
    const int64_t count = (target->weight->impl().*pieces)();
    const int64_t from = begin > first ? begin - first : 0;
    const int64_t to = end - first < count ? end - first : count;
    if (from < to) body(PieceRange{target, from, to});
    first += count;
  }
}

inline int64_t count_pieces(const SpikePathArgs& args,
                            int64_t (SpikeWeight::Impl::*pieces)() const) {
  int64_t total = 0;
  for (const SpikeMatmulTarget* target : args.targets) {
    total += (target->weight->impl().*pieces)();
  }
  return total;
}

// Where the results of `token` and rows from first_row on go.
RowOutput output_of(const SpikeMatmulTarget& target, int64_t token, int64_t first_row);

// offsets[g] = -128 * (sum of the core counts of group g).
void sum_counts(const int8_t* core, int64_t groups, int32_t* offsets);

// Whether bursts or a residual add to the products of the cores.
bool needs_corrections(const SpikePathArgs& args, const SpikeWeight::Impl& weight, int64_t token);

// What they add: corrections [groups, 16] of the rows of one block.
void fill_corrections(const SpikePathArgs& args, const SpikeWeight::Impl& weight, int64_t block,
                      int64_t token, int64_t* corrections);

// Rows [token, token + count) of the counts times some blocks; `offsets` belong to row `token`,
// `corrections` are room for [groups, 16].
void multiply_cell_rows(const SpikePathArgs& args, const PieceRange& range, int64_t token,
                        int64_t count, const int32_t* offsets, int64_t* corrections);

void multiply_tiles(Context& context, const SpikePathArgs& args);
void multiply_dense_cells(Context& context, const SpikePathArgs& args);
void multiply_events(Context& context, const SpikePathArgs& args);
void multiply_planes(Context& context, const SpikePathArgs& args);

}  // namespace spb::spike
