#include "cli/spike_meter.h"

#include <fmt/format.h>

#include "cli/options.h"
#include "cli/spikes_energy.h"
#include "core/error.h"

namespace spb::cli {
namespace {

constexpr std::chrono::milliseconds kInterval{200};
constexpr double kMillijoule = 1e9;  // picojoules

struct Totals {
  int64_t entries = 0;
  int64_t silent = 0;
  int64_t spikes = 0;
};

Totals total_of(const spike::SiteStatistics& sites) {
  Totals total;
  for (const auto& [key, statistics] : sites) {
    total.entries += statistics.entries();
    total.silent += statistics.silent();
    total.spikes += statistics.spike_sum();
  }
  return total;
}

}  // namespace

SpikeMeter::SpikeMeter(Context& context, const engine::TextModel& model,
                       const model::ForwardHooks& hooks, engine::Session& session)
    : model_(*model.model), session_(session), without_(hooks), recorder_(context) {
  check(model_.config().spikes.has_value(),
        "--spikes: {} is no spiking model; spb quantize --spike makes one", model.path);
  model::ForwardHooks observed = hooks;
  observed.observer = &recorder_;
  session_.set_hooks(observed);
  status_ = std::make_unique<StatusLine>(stderr);
}

SpikeMeter::~SpikeMeter() { session_.set_hooks(without_); }

std::string SpikeMeter::line() const {
  const Totals total = total_of(recorder_.statistics());
  const auto tokens = static_cast<double>(std::max<int64_t>(1, recorder_.tokens()));
  const EnergyReport energy = estimate_energy(model_, recorder_, {});
  const spike::SiteEnergy& alone = energy.total().alone;
  return fmt::format(
      "spikes: {} per token, {:.1f} % silent; about {:.2f} mJ per token, {:.2f} in dense fp16",
      format_count(static_cast<int64_t>(static_cast<double>(total.spikes) / tokens)),
      100.0 * static_cast<double>(total.silent) /
          static_cast<double>(std::max<int64_t>(1, total.entries)),
      alone.executed.total() / tokens / kMillijoule,
      alone.fp16_dense.total() / tokens / kMillijoule);
}

void SpikeMeter::update() {
  const Clock::time_point now = Clock::now();
  if (!status_->shown() || now < next_) return;
  next_ = now + kInterval;
  status_->show(line());
}

void SpikeMeter::finish() {
  status_.reset();
  if (recorder_.tokens() > 0) fmt::print(stderr, "[{} (estimates)]\n", line());
}

}  // namespace spb::cli
