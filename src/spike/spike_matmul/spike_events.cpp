// Event-driven products: the weights of silent channels are never read.
#include <algorithm>

#include "core/error.h"
#include "core/isa.h"
#include "spike/spike_matmul/spike_path.h"

namespace spb::spike {
namespace {

// From so many rows of weights on, and so much silence, events are quicker.
struct EventRule {
  int64_t fewest_rows;
  double least_silence;
};

// Measured on weights that come from memory (spike_matmul_bench, events/): with less silence events
// are up to 5 % slower than a dense product. Fewer rows make bands too short to be read fast, and
// too few to share.
constexpr EventRule kOnCpu{1024, 0.12};
// spike_cuda_bench: 18944 rows twice. The 5120 of a mixer break even between 70 and 90 % silence.
constexpr EventRule kOnCuda{8192, 0.4};

struct EventScratch {
  EventQuad* quads;      // [columns / 4 + groups + kQuadsAhead]
  int32_t* quad_end;     // [groups]
  int32_t* offsets;      // [groups]
  int64_t* corrections;  // [threads, blocks of the longest band, groups, 16]
};

int64_t correction_count(int64_t groups) { return kLongestBand * groups; }

// Gathers the firing channels of a row into quads, group by group.
EventList list_events(const SpikePathArgs& args, int64_t token, const EventScratch& scratch) {
  const SpikeCounts& counts = args.counts;
  const int8_t* core = args.core(token);
  int64_t a = counts.active_begin[static_cast<size_t>(token)];
  const int64_t end = counts.active_begin[static_cast<size_t>(token) + 1];
  check(a >= 0 && a <= end && end <= static_cast<int64_t>(counts.active.size()),
        "spike_matmul: active_begin: row {}: expected an ascending range of {} channels, got {} to "
        "{}",
        token, counts.active.size(), a, end);
  int64_t lowest = 0;
  int32_t quads = 0;
  for (int64_t g = 0; g < args.groups(); ++g) {
    const int64_t next_group = std::min((g + 1) * kScaleGroup, counts.core.shape()[1]);
    for (int lane = 0; a < end && counts.active[static_cast<size_t>(a)] < next_group; ++a) {
      const int64_t channel = counts.active[static_cast<size_t>(a)];
      check(channel >= lowest, "spike_matmul: active: row {}: expected ascending channels, got {}",
            token, channel);
      lowest = channel + 1;
      const auto slot = static_cast<int32_t>(g * kBandGroupSlots + channel - g * kScaleGroup);
      EventQuad& quad = scratch.quads[quads];
      if (lane == 0) quad = {{slot, slot, slot, slot}, {}};
      quad.slots[lane] = slot;
      quad.counts[lane] = core[channel];
      lane = (lane + 1) % 4;
      if (lane == 0 || a + 1 == end || counts.active[static_cast<size_t>(a + 1)] >= next_group) {
        ++quads;
      }
    }
    scratch.quad_end[g] = quads;
  }
  check(a == end, "spike_matmul: active: row {}: expected channels below {}, got {}", token,
        counts.core.shape()[1], a < end ? counts.active[static_cast<size_t>(a)] : 0);
  std::fill_n(scratch.quads + quads, kQuadsAhead, EventQuad{});
  sum_counts(core, args.groups(), scratch.offsets);
  return {scratch.quads, scratch.quad_end, scratch.offsets};
}

void multiply_bands(const SpikePathArgs& args, const PieceRange& range, int64_t token,
                    const EventList& events, int64_t* corrections) {
  const auto kernel = select_isa(&isa_portable::multiply_spike_band, &isa_avx2::multiply_spike_band,
                                 &isa_avx512::multiply_spike_band);
  const SpikeWeight::Impl& weight = range.target->weight->impl();
  const bool corrected = needs_corrections(args, weight, token);
  const int64_t band_blocks = weight.band_rows / kBlockRows;
  for (int64_t band = range.begin; band < range.end; ++band) {
    const int64_t row = band * weight.band_rows;
    const int64_t blocks = std::min(band_blocks, weight.blocks() - band * band_blocks);
    for (int64_t b = 0; corrected && b < band_blocks; ++b) {
      int64_t* sums = corrections + b * args.groups() * kBlockRows;
      if (b < blocks) {
        fill_corrections(args, weight, band * band_blocks + b, token, sums);
      } else {
        std::fill_n(sums, args.groups() * kBlockRows, 0);
      }
    }
    kernel({.band = weight.bands.data() + band * weight.band_bytes(),
            .band_rows = weight.band_rows,
            .groups = args.groups(),
            .rows = std::min(weight.band_rows, weight.rows - row),
            .events = events,
            .corrections = corrected ? corrections : nullptr,
            .threshold = args.threshold(token),
            .out = output_of(*range.target, token, row)});
  }
}

}  // namespace

bool event_pays(const Device& device, int64_t rows, double silence) {
  const EventRule& rule = device.is_cuda() ? kOnCuda : kOnCpu;
  return rows >= rule.fewest_rows && silence >= rule.least_silence;
}

double least_silence(const Device& device) {
  return device.is_cuda() ? kOnCuda.least_silence : kOnCpu.least_silence;
}

void multiply_events(Context& context, const SpikePathArgs& args) {
  const int64_t groups = args.groups();
  Arena& arena = context.arena();
  const EventScratch scratch = {
      arena.allocate<EventQuad>(args.columns() / 4 + groups + kQuadsAhead),
      arena.allocate<int32_t>(groups), arena.allocate<int32_t>(groups),
      arena.allocate<int64_t>(context.pool().threads() * correction_count(groups))};
  const auto bands = &SpikeWeight::Impl::band_count;
  for (int64_t token = 0; token < args.tokens(); ++token) {
    const EventList events = list_events(args, token, scratch);
    context.pool().parallel_for(
        count_pieces(args, bands), 1, [&](int64_t begin, int64_t end, int thread) {
          for_each_target(args, bands, begin, end, [&](const PieceRange& range) {
            multiply_bands(args, range, token, events,
                           scratch.corrections + thread * correction_count(groups));
          });
        });
  }
}

}  // namespace spb::spike
