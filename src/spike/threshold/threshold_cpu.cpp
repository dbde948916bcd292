#include <algorithm>
#include <cmath>

#include "core/isa.h"
#include "spike/threshold/threshold_kernels.h"

namespace spb::spike {
namespace {

// Rows that a thread takes at once: some microseconds of work.
int64_t grain_of(int64_t channels) { return std::max<int64_t>(1, 16384 / channels); }

// Fires every row: thresholds, cores, and what was found.
void fire(Context& context, const ThresholdArgs& args, FiredRow* rows) {
  const auto sum =
      select_isa(&isa_portable::absolute_sum, &isa_avx2::absolute_sum, &isa_avx512::absolute_sum);
  const auto fire_row =
      select_isa(&isa_portable::fire_row, &isa_avx2::fire_row, &isa_avx512::fire_row);
  const int64_t channels = args.x.shape()[1];
  const auto dead_zone = static_cast<float>(args.settings.dead_zone);
  float* thresholds = args.out->thresholds.as<float>();
  const auto work = [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      const float* x = args.x.row_as<float>(m);
      const float total = sum(x, channels);
      // An infinite sum may come from finite drives; NaN and infinity among them leave no other.
      rows[m].finite = std::isfinite(total) ||
                       std::all_of(x, x + channels, [](float d) { return std::isfinite(d); });
      thresholds[m] = firing_threshold(total, channels, args.settings);
      if (!rows[m].finite) continue;
      fire_row(x, channels, thresholds[m], dead_zone, args.out->core.row_as<int8_t>(m), &rows[m]);
    }
  };
  context.pool().parallel_for(args.x.shape()[0], grain_of(channels), work);
}

// Whether a burst may hide behind one of these: only the ends of the core can. Without branches, so
// that the compiler makes vectors of it.
bool any_at_an_end(const int8_t* core, int32_t count) {
  int ends = 0;
  for (int32_t i = 0; i < count; ++i) ends |= (core[i] == kCoreLimit) | (core[i] == -kCoreLimit);
  return ends != 0;
}

void list_bursts(const ThresholdArgs& args, int64_t m, Burst* bursts, int32_t count) {
  constexpr int32_t kBlock = 64;
  const float* x = args.x.row_as<float>(m);
  const int8_t* core = args.out->core.row_as<int8_t>(m);
  const float threshold = args.out->thresholds.as<float>()[m];
  const auto dead_zone = static_cast<float>(args.settings.dead_zone);
  const auto channels = static_cast<int32_t>(args.x.shape()[1]);
  int32_t found = 0;
  for (int32_t first = 0; found < count; first += kBlock) {
    const int32_t size = std::min(kBlock, channels - first);
    if (!any_at_an_end(core + first, size)) continue;
    for (int32_t c = first; c < first + size; ++c) {
      if (core[c] > -kCoreLimit && core[c] < kCoreLimit) continue;
      const auto excess = static_cast<int32_t>(spike_count(x[c], threshold, dead_zone)) - core[c];
      if (excess != 0) bursts[found++] = {static_cast<int32_t>(m), c, excess};
    }
  }
}

// Where the lists of each row begin; the totals are the last entries.
void lay_out_lists(const ThresholdArgs& args, const FiredRow* rows, int64_t* burst_begin) {
  SpikeCounts& out = *args.out;
  const int64_t count = args.x.shape()[0];
  burst_begin[0] = 0;
  for (int64_t m = 0; m < count; ++m) burst_begin[m + 1] = burst_begin[m] + rows[m].bursts;
  out.bursts.resize(static_cast<size_t>(burst_begin[count]));
  out.active_begin.clear();
  out.active.clear();
  if (!args.want_active) return;
  out.active_begin.resize(static_cast<size_t>(count) + 1);
  for (int64_t m = 0; m < count; ++m) {
    out.active_begin[static_cast<size_t>(m) + 1] =
        out.active_begin[static_cast<size_t>(m)] + rows[m].active;
  }
  out.active.resize(static_cast<size_t>(out.active_begin.back()));
}

}  // namespace

void spike_threshold_cpu(Context& context, const ThresholdArgs& args) {
  const int64_t count = args.x.shape()[0];
  const Arena::Scope scope(context.arena());
  FiredRow* rows = context.arena().allocate<FiredRow>(count);
  int64_t* burst_begin = context.arena().allocate<int64_t>(count + 1);
  fire(context, args, rows);
  check_drives(args, rows);
  lay_out_lists(args, rows, burst_begin);
  const auto list_active =
      select_isa(&isa_portable::list_active, &isa_avx2::list_active, &isa_avx512::list_active);
  SpikeCounts& out = *args.out;
  const auto work = [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      list_bursts(args, m, out.bursts.data() + burst_begin[m], rows[m].bursts);
      if (!args.want_active) continue;
      list_active(out.core.row_as<int8_t>(m), args.x.shape()[1], rows[m].active,
                  out.active.data() + out.active_begin[static_cast<size_t>(m)]);
    }
  };
  if (!args.want_active && burst_begin[count] == 0) return;
  context.pool().parallel_for(count, grain_of(args.x.shape()[1]), work);
}

}  // namespace spb::spike
